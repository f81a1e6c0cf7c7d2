import { test } from 'vitest';
import { useStore } from '#test/ipam-store/fixture.ts';
import { checkFollowing } from '#test/ipam-store/following.ts';

const store = useStore();

test('in thousands of histories followers end with what the ledger has', async () => {
  await checkFollowing(store, { histories: 5_000, longest: 120 });
});
