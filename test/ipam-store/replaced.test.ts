import assert from 'node:assert/strict';
import { beforeEach, describe, expect, test } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import type { NetworkRecord } from '#ipam-store/ledger.ts';
import { askFor, bare, owned, put, refused, useStore } from './fixture.ts';
import { fleetOf, forgetMemory, type Member } from './member.ts';

// A gateway that moves, and networks that take the place of others: it works at once, and nobody is granted what a bridge
// still has.

const store = useStore();
const NET = { network: 'net', subnet: '10.42.0.0/29', gateway: '10.42.0.1', reuseDelaySeconds: 0 };
const ELSEWHERE = { ...NET, subnet: '10.43.0.0/29', gateway: '10.43.0.1' };

let members: readonly Member[];

beforeEach(async () => {
  await store.raw.flushall();
  await forgetMemory(store.raw);
  members = await fleetOf(store.ledger, ['h1', 'h2']);
});

/** Each host has a bridge of the network, and no lease any more. */
async function used(keys: object): Promise<NetworkRecord> {
  const record = await put(store.ledger, keys);
  for (const member of members) {
    const lease = await member.acquire(record, `of-${member.host}`);
    await store.ledger.release({ ...owned(lease), cool: true });
    member.leases.clear();
  }
  return record;
}

/** What is granted until nothing is left. */
async function everything(record: NetworkRecord): Promise<string[]> {
  const given: string[] = [];
  for (;;) {
    const asked = store.ledger.acquire(askFor(record, `all${given.length}`));
    const granted = await asked.catch((error: unknown) => {
      expect(error).toMatchObject({ code: 'POOL_EXHAUSTED' });
    });
    if (granted === undefined) break;
    given.push(bare(granted.lease));
  }
  const { leases } = await store.ledger.listLeases({ network: record.network.network });
  for (const lease of leases) await store.ledger.release({ ...owned(lease), cool: false });
  return given.toSorted();
}

const applied = async (revision: number): Promise<void> => {
  for (const member of members) await member.beat({ applied: revision });
};

const hosts = (subnet: string, from: number, to: number): string[] =>
  Array.from({ length: to - from + 1 }, (_, n) => `10.${subnet}.0.${from + n}`);

describe('at once, and without what the bridges of before have', () => {
  test('another gateway', async () => {
    const before = await used(NET);
    const after = await put(store.ledger, { ...NET, gateway: '10.42.0.6' }, before.revision);
    expect(await everything(after)).toEqual(hosts('42', 2, 5));
    await applied(after.revision);
    expect(await everything(after)).toEqual(hosts('42', 1, 5));
  });

  test('another subnet, and back', async () => {
    const before = await used(NET);
    const away = await put(store.ledger, ELSEWHERE, before.revision);
    expect(await everything(away)).toEqual(hosts('43', 2, 6));
    const back = await put(store.ledger, { ...NET, gateway: '10.42.0.6' }, away.revision);
    expect(await everything(back)).toEqual(hosts('42', 2, 5));
    await applied(back.revision);
    expect(await everything(back)).toEqual(hosts('42', 1, 5));
  });

  test('a larger subnet, and a smaller one', async () => {
    const before = await used(NET);
    const larger = { ...NET, subnet: '10.42.0.0/28', gateway: '10.42.0.14' };
    const grown = await put(store.ledger, larger, before.revision);
    // What was the broadcast address is none any more, and no bridge has it.
    expect(await everything(grown)).toEqual(hosts('42', 2, 13).toSorted());
    const shrunk = await put(store.ledger, { ...NET, gateway: '10.42.0.2' }, grown.revision);
    expect(await everything(shrunk)).toEqual(hosts('42', 3, 6));
    await applied(shrunk.revision);
    expect(await everything(shrunk)).toEqual(['10.42.0.1', ...hosts('42', 3, 6)]);
  });

  test.each([
    ['the same name and subnet', NET, NET, hosts('42', 2, 6), hosts('42', 2, 6)],
    [
      'the same name and subnet, with another gateway',
      NET,
      { ...NET, gateway: '10.42.0.6' },
      hosts('42', 2, 5),
      hosts('42', 1, 5),
    ],
    ['the same name, with another subnet', NET, ELSEWHERE, hosts('43', 2, 6), hosts('43', 2, 6)],
    [
      'another name, with the same subnet and bridge',
      { ...NET, bridge: 'br0' },
      { ...NET, network: 'next', bridge: 'br0', gateway: '10.42.0.6' },
      hosts('42', 2, 5),
      hosts('42', 1, 5),
    ],
    [
      'another name and type, with a subnet around it',
      NET,
      { ...NET, network: 'next', type: 'host-only', subnet: '10.42.0.0/28', gateway: '10.42.0.8' },
      [...hosts('42', 2, 7), ...hosts('42', 9, 14)].toSorted(),
      [...hosts('42', 1, 7), ...hosts('42', 9, 14)].toSorted(),
    ],
  ])('deleted and put again: %s', async (_, keys, next, atOnce, later) => {
    await used(keys);
    expect(await store.ledger.deleteNetwork('net')).toEqual({ deleted: true });
    const record = await put(store.ledger, next);
    expect(await everything(record)).toEqual(atOnce);
    await applied(record.revision);
    expect(await everything(record)).toEqual(later);
  });
});

describe('while a lease would lose its subnet or its way out, it is refused by its name', () => {
  test.each([
    ['gateway', { gateway: '10.42.0.6' }],
    ['gateway', { gateway: undefined }],
    ['subnet', { subnet: '10.42.0.0/28' }],
    ['subnet', ELSEWHERE],
  ])('another %s', async (path, keys) => {
    const before = await put(store.ledger, NET);
    await members[1]?.acquire(before, 'held');
    const changed = { ...NET, ...keys };
    const error = await refused(store.raw, () => put(store.ledger, changed, before.revision));
    expect(error).toMatchObject({ code: 'NETWORK_IN_USE', details: { id: 'held', path } });
    expect(error.message).toContain('held');
    const deleting = await refused(store.raw, () => store.ledger.deleteNetwork('net'));
    expect(deleting).toMatchObject({ code: 'NETWORK_IN_USE', details: { ids: ['held'] } });
  });
});

test('a put under another name is refused while the network of before has the subnet', async () => {
  await used(NET);
  const next = { ...NET, network: 'next' };
  expect(await refused(store.raw, () => put(store.ledger, next))).toMatchObject({
    code: 'NETWORK_CONFLICT',
    details: { network: 'net', path: 'subnet' },
  });
});

/** A host's bridges as its agent keeps them: by network, the gateways that it has given to each. */
class Bridges {
  readonly member: Member;
  readonly #gateways = new Map<string, Set<string>>();
  #known = 0;

  constructor(member: Member) {
    this.member = member;
  }

  get addresses(): string[] {
    return [...this.#gateways.values()].flatMap((some) => [...some]);
  }

  give({ network: { network, gateway } }: NetworkRecord): void {
    const some = this.#gateways.get(network) ?? new Set();
    if (gateway !== undefined) some.add(gateway);
    this.#gateways.set(network, some);
  }

  /** Reads what has changed and makes the bridges so; `say` tells the ledger. */
  async apply(say: boolean): Promise<void> {
    const { changed, gone, revision, more } = await store.ledger.networkChanges(
      this.#known,
      this.member.host,
    );
    assert(!more);
    for (const name of gone) this.#gateways.delete(name);
    for (const record of changed) {
      if (!this.#gateways.delete(record.network.network)) continue;
      this.give(record);
    }
    this.#known = revision;
    if (say) await this.member.beat({ applied: revision });
  }
}

test('no history of changes grants what a bridge has', async () => {
  for (let seed = 1; seed <= 25; seed += 1) await history(seed);
});

async function history(seed: number): Promise<void> {
  await store.raw.flushall();
  await forgetMemory(store.raw);
  members = await fleetOf(store.ledger, ['h1', 'h2']);
  const bridges = members.map((member) => new Bridges(member));
  const random = randomOf(seed);
  const pick = <T>(some: readonly T[]): T => some[Math.floor(random() * some.length)] as T;
  const trace: string[] = [];
  let granted = 0;
  for (let step = 0; step < 40; step += 1) {
    const name = pick(['a', 'b']);
    const found = await store.ledger.getNetwork(name);
    const host = pick(bridges);
    const what = pick(['put', 'put', 'delete', 'acquire', 'acquire', 'acquire', 'apply', 'say']);
    trace.push(`${what} ${name} ${host.member.host}`);
    if (what === 'put') {
      const subnet = pick(['10.1.0', '10.2.0']);
      const keys = {
        network: name,
        subnet: `${subnet}.0/29`,
        gateway: `${subnet}.${pick([1, 2, 3, 6])}`,
        bridge: pick([name, 'br0']),
        reuseDelaySeconds: 0,
      };
      trace.push(`${keys.gateway} ${keys.bridge}`);
      await put(store.ledger, keys, found?.revision).catch((error: unknown) => {
        if (!(error instanceof VoltError)) throw error;
        expect(['NETWORK_IN_USE', 'NETWORK_CONFLICT']).toContain(error.code);
        expect(error.details?.['id'] ?? error.details?.['network']).toEqual(expect.any(String));
      });
    } else if (what === 'delete') {
      await store.ledger.deleteNetwork(name).catch((error: unknown) => {
        expect(error).toMatchObject({ code: 'NETWORK_IN_USE' });
      });
    } else if (what === 'acquire' && found !== null) {
      const lease = await host.member
        .acquire(found, `id${step}`)
        .catch((error: unknown) => expect(error).toMatchObject({ code: 'POOL_EXHAUSTED' }));
      if (lease === undefined) continue;
      granted += 1;
      host.give(found);
      const address = bare(lease);
      const holders = bridges.filter((one) => one.addresses.includes(address));
      expect(holders, `seed ${seed}: ${address}: ${trace.join(', ')}`).toEqual([]);
      // Most are given back, or nothing could be changed.
      if (random() < 0.8) await store.ledger.release({ ...owned(lease), cool: true });
    } else if (what === 'apply' || what === 'say') await host.apply(what === 'say');
  }
  for (const { id, generation, host } of (await store.ledger.listLeases({})).leases) {
    await store.ledger.release({ ...owned({ id, generation, host }), cool: true });
  }
  for (const host of bridges) await host.apply(true);
  const found = [];
  for await (const difference of store.ledger.audit()) found.push(difference);
  expect(found, `seed ${seed}: ${trace.join(', ')}`).toEqual([]);
  expect(granted).toBeGreaterThan(0);
}

/** mulberry32. */
const randomOf = (seed: number) => (): number => {
  seed = (seed + 0x6d2b79f5) | 0;
  let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
};
