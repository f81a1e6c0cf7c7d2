import { describe, expect, test } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import { actionsOn, put, refused, ROOT, useStore } from './fixture.ts';

// One bridge, one network: two that want the same would take each other's gateway, NAT and rules away.

const store = useStore();
const { acquire, release } = actionsOn(store);

const A = { network: 'a', subnet: '10.1.0.0/24', gateway: '10.1.0.1' };
const B = { network: 'b', subnet: '10.2.0.0/24', gateway: '10.2.0.1' };

describe('a put is refused where another network has the bridge', () => {
  test.each([
    ['by its own name', { ...A, network: 'br0' }, { ...B, bridge: 'br0' }],
    ['that is the own name', { ...A, bridge: 'b' }, B],
    ['by a name for both', { ...A, bridge: 'br0' }, { ...B, bridge: 'br0' }],
    ['of another type', { ...A, bridge: 'br0', type: 'host-only' }, { ...B, bridge: 'br0' }],
  ])('%s', async (_, first, second) => {
    const { network: has } = await put(store.ledger, first);
    const error = await refused(store.raw, () => put(store.ledger, second));
    expect(error).toMatchObject({
      code: 'NETWORK_CONFLICT',
      details: { network: has.network, path: 'bridge', bridge: has.bridge },
    });
    expect(error.message).toContain(has.network);
    await store.ledger.deleteNetwork(has.network);
    await put(store.ledger, second);
  });

  test('also where it had another until then', async () => {
    await put(store.ledger, A);
    const record = await put(store.ledger, B);
    const error = await refused(store.raw, () =>
      put(store.ledger, { ...B, bridge: 'a' }, record.revision),
    );
    expect(error).toMatchObject({ code: 'NETWORK_CONFLICT', details: { network: 'a' } });
    await put(store.ledger, { ...B, bridge: 'c' }, record.revision);
    // Freed by that.
    await put(store.ledger, { network: 'd', subnet: '10.3.0.0/24', bridge: 'b' });
  });

  test('of two at once, one is', async () => {
    const outcomes = await Promise.allSettled(
      [A, B].map((keys) => put(store.ledger, { ...keys, bridge: 'br0' })),
    );
    const refusals = outcomes.filter((one) => one.status === 'rejected').map((one) => one.reason);
    expect(refusals).toMatchObject([{ code: 'NETWORK_CONFLICT' }]);
    expect((await store.ledger.listNetworks()).networks).toHaveLength(1);
  });

  test('also where an earlier version has put the other, and has kept nothing beside its definition', async () => {
    await put(store.ledger, { ...A, bridge: 'br0' });
    await store.raw.hdel(`${ROOT}:net:a`, 'fixed');
    const error = await refused(store.raw, () => put(store.ledger, { ...B, bridge: 'br0' }));
    expect(error.details).toMatchObject({ network: 'a', path: 'bridge' });
  });
});

test.each([
  ['a type without a bridge', { network: 'br0', type: 'isolated' }],
  ['a name that begins with it', { ...A, bridge: 'br00' }],
  ['a name that it is part of', { ...A, network: 'xbr0' }],
])('%s is no obstacle', async (_, other) => {
  await put(store.ledger, other);
  await put(store.ledger, { ...B, bridge: 'br0' });
});

describe('two that share a bridge since an earlier version', () => {
  /** The second, as it was put when nobody compared bridges. */
  async function shared(): Promise<number> {
    await put(store.ledger, { ...A, bridge: 'br0' });
    const { network, revision } = await put(store.ledger, B);
    const text = JSON.stringify({ ...network, bridge: 'br0' });
    const fixed = await store.raw.hget(`${ROOT}:net:b`, 'fixed');
    await store.raw.hset(`${ROOT}:net:b`, {
      network: text,
      fixed: fixed?.replace('"bridge":"b"', '"bridge":"br0"') ?? '',
    });
    return revision;
  }

  test('are read, granted in and changed as before', async () => {
    const revision = await shared();
    const found = await store.ledger.getNetwork('b');
    expect(found).toMatchObject({ revision, network: { bridge: 'br0' } });
    if (found === null) return;
    await acquire(found, 'held');
    const edited = await put(store.ledger, { ...B, bridge: 'br0', filter: false }, revision);
    await release('held');
    // Away from it, and not back.
    const moved = await put(store.ledger, B, edited.revision);
    const back = put(store.ledger, { ...B, bridge: 'br0' }, moved.revision);
    await expect(back).rejects.toThrow(VoltError);
  });

  test('are both brought back after a loss', async () => {
    await shared();
    const { networks } = await store.ledger.listNetworks();
    for (const { network } of networks) await store.ledger.deleteNetwork(network.network);
    await store.raw.hdel(`${ROOT}:host:h1`, 'asserted');
    const pulse = await store.ledger.heartbeat({
      host: 'h1',
      machineId: 'machine-h1',
      bootId: 'boot-1',
      suspectAfterSeconds: 20,
      recoveryWindowSeconds: null,
      seen: { generation: 2 ** 34, revision: 99, roster: 0, hosts: [] },
      newFleet: false,
    });
    const session = { host: 'h1', machineId: 'machine-h1', epoch: pulse.epoch };
    const outcome = await store.ledger.reassert(session, { networks, leases: [] });
    expect(outcome.networks.map((one) => one.outcome)).toEqual(['restored', 'restored']);
  });
});
