import { describe, expect, test } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import type { LeaseRequest, NetworkRecord } from '#ipam-store/ledger.ts';
import { askFor, contents, put, small, useStore, VOLT0, owned } from './fixture.ts';

// What a preview says is what the acquire right after it does; and it changes nothing.

const store = useStore();

const DUAL = {
  network: 'dual',
  subnet: '10.44.0.0/24',
  ipv6: { subnet: 'fd44::/64', gateway: 'fd44::1' },
};

async function same(record: NetworkRecord, id: string, more: Partial<LeaseRequest> = {}) {
  const ask = { ...askFor(record, id), ...more };
  const before = await contents(store.raw);
  const said: unknown = await store.ledger.preview(ask).catch((error: unknown) => error);
  expect(await contents(store.raw)).toEqual(before);
  const done: unknown = await store.ledger.acquire(ask).catch((error: unknown) => error);
  if (said instanceof VoltError) {
    const { code, message, details } = said;
    expect(done).toMatchObject({ code, message, details });
    return code;
  }
  const times = { grantedAt: expect.any(String) as string };
  const { lease, created } = said as { lease: object; created: boolean };
  expect(done).toMatchObject({ lease: { ...lease, ...times }, created });
  return 'granted';
}

describe('a preview says what an acquire does', () => {
  test('of fresh, reserved and chosen addresses, and of both families', async () => {
    const record = await put(store.ledger, VOLT0);
    expect(await same(record, 'one')).toBe('granted');
    expect(await same(record, 'web', { workload: 'vm-web' })).toBe('granted');
    expect(await same(record, 'chosen', { addresses: ['10.42.0.50'] })).toBe('granted');
    expect(await same(record, 'named', { mac: '02:00:00:00:00:77', hostname: 'n' })).toBe(
      'granted',
    );
    const dual = await put(store.ledger, DUAL);
    expect(await same(dual, 'both')).toBe('granted');
    expect(await same(dual, 'more')).toBe('granted');
  });

  test('of used addresses, an exhausted pool and one that rests', async () => {
    const record = await put(store.ledger, small({ reuseDelaySeconds: 0 }));
    const { lease } = await store.ledger.acquire(askFor(record, 'first'));
    for (let n = 0; (await same(record, `fill-${n}`)) === 'granted'; n += 1);
    expect(await same(record, 'none')).toBe('POOL_EXHAUSTED');
    await store.ledger.release({ ...owned(lease), cool: true });
    expect(await same(record, 'again')).toBe('granted');
  });

  test('of an id that has a lease', async () => {
    const record = await put(store.ledger, VOLT0);
    await store.ledger.acquire(askFor(record, 'one'));
    expect(await same(record, 'one')).toBe('granted');
    expect(await same(record, 'one', { workload: 'another' })).toBe('ALREADY_ATTACHED');
    expect(await same(record, 'one', { host: 'h2', machineId: 'machine-h2' })).toBe('WRONG_HOST');
  });

  test("of what is another's", async () => {
    const record = await put(store.ledger, VOLT0);
    const mac = '02:00:00:00:00:78';
    await store.ledger.acquire({ ...askFor(record, 'one'), mac, addresses: ['10.42.0.60'] });
    expect(await same(record, 'two', { mac })).toBe('MAC_IN_USE');
    expect(await same(record, 'two', { addresses: ['10.42.0.60'] })).toBe('ADDRESS_IN_USE');
    expect(await same(record, 'two', { host: 'stranger', machineId: 'm' })).toBe('RECOVERING');
  });
});
