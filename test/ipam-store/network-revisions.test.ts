import { beforeEach, expect, test } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import type { NetworkChanges } from '#ipam-store/ledger.ts';
import { put, ROOT, useStore, VOLT0 } from './fixture.ts';

// What a host reads of networks that have changed since it read last.

const store = useStore();
const subnetOf = (n: number): string => `10.${n >> 8}.${n & 255}.0/24`;

let revision: number;

beforeEach(async () => {
  await put(store.ledger, { network: 'one', subnet: subnetOf(1) });
  await put(store.ledger, { network: 'two', subnet: subnetOf(2) });
  ({ revision } = await put(store.ledger, { network: 'three', subnet: subnetOf(3) }));
});

const told = ({ changed, gone }: NetworkChanges): object => ({
  changed: changed.map((one) => one.network.network),
  gone,
});

test('nothing where nothing has changed', async () => {
  const none = await store.ledger.networkChanges(revision);
  expect(none).toEqual({ changed: [], gone: [], revision, more: false, whole: false, letGo: [] });
});

test('what was put and deleted since, each once, with its definition of now', async () => {
  const keys = { network: 'two', subnet: subnetOf(2) };
  const { revision: before } = (await store.ledger.getNetwork('two')) ?? {};
  const changed = await put(store.ledger, { ...keys, mtu: 1400 }, before);
  const again = await put(store.ledger, { ...keys, mtu: 1300 }, changed.revision);
  await store.ledger.deleteNetwork('one');
  await put(store.ledger, VOLT0);
  const changes = await store.ledger.networkChanges(revision);
  expect(told(changes)).toEqual({ changed: ['two', 'volt0'], gone: ['one'] });
  expect(changes.changed[0]).toEqual({ network: again.network, revision: again.revision });
  expect(changes).toMatchObject({ revision: revision + 4, more: false, whole: false });
  await put(store.ledger, { network: 'one', subnet: subnetOf(9) });
  const last = await store.ledger.networkChanges(changes.revision);
  expect(told(last)).toEqual({ changed: ['one'], gone: [] });
});

test('in pages of which each goes on where the one before ended', async () => {
  const reservations = Object.fromEntries(
    Array.from({ length: 5_000 }, (_, n) => [
      `vm-with-a-long-name-${n}`,
      `10.64.${n >> 8}.${n & 255}`,
    ]),
  );
  delete reservations['vm-with-a-long-name-0'];
  for (let n = 0; n < 4; n += 1) {
    await put(store.ledger, {
      network: `big${n}`,
      subnet: `10.${64 + n}.0.0/16`,
      ...(n === 0 && { reservations }),
    });
  }
  const changed: string[] = [];
  let since = revision;
  for (let more = true; more;) {
    const page = await store.ledger.networkChanges(since);
    changed.push(...page.changed.map((one) => one.network.network));
    expect(page.revision).toBeGreaterThan(since);
    since = page.revision;
    ({ more } = page);
  }
  expect(changed).toEqual(['big0', 'big1', 'big2', 'big3']);
});

test('the whole, where the ledger has lost or never kept a part of what has changed', async () => {
  const whole = async (): Promise<boolean> =>
    (await store.ledger.networkChanges(revision - 1)).whole;
  expect(await whole()).toBe(false);
  await store.raw.zrem(`${ROOT}:revised`, 'three');
  expect(await whole()).toBe(true);
  // As an earlier library leaves it.
  await store.raw.del(`${ROOT}:revised`);
  await store.raw.hdel(`${ROOT}:leases`, '#revised');
  expect(await whole()).toBe(true);
  await put(store.ledger, VOLT0);
  expect(await whole()).toBe(true);
  expect(told(await store.ledger.networkChanges(revision))).toEqual({
    changed: ['volt0'],
    gone: [],
  });
});

test(
  'no deletion is forgotten that is not known to be forgotten',
  { timeout: 30_000 },
  async () => {
    const from = revision;
    for (let n = 0; n < 700; n += 1) {
      await put(store.ledger, { network: `n${n}`, subnet: subnetOf(1_000 + (n % 50)) });
      await store.ledger.deleteNetwork(`n${n}`);
    }
    expect(await store.raw.zcard(`${ROOT}:revised`)).toBeLessThan(600);
    expect((await store.ledger.networkChanges(from)).whole).toBe(true);
    const { gone, whole } = await store.ledger.networkChanges(from + 1_300);
    expect({ gone: gone.length, whole }).toEqual({ gone: 50, whole: false });
  },
);

test('RECOVERING of a revision that the ledger does not know', async () => {
  const error = await store.ledger.networkChanges(revision + 1).catch((one: unknown) => one);
  expect(error).toBeInstanceOf(VoltError);
  expect(error).toMatchObject({ code: 'RECOVERING' });
});
