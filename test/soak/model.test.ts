import { test } from 'vitest';
import { useStore } from '#test/ipam-store/fixture.ts';
import { checkHistories } from '#test/ipam-store/histories.ts';

const store = useStore();

test('thousands of histories are ones that a plain model has too', async () => {
  await checkHistories(store, { histories: 5_000, longest: 120 });
});
