import { test } from 'vitest';
import { checkHistories } from './histories.ts';
import { useStore } from './fixture.ts';

const store = useStore();

test('any history is one that a plain model has too', { timeout: 60_000 }, async () => {
  await checkHistories(store, { histories: 150, longest: 40 });
});
