import fc from 'fast-check';
import assert from 'node:assert/strict';
import { type Network, parseNetwork } from '#protocol/network.ts';
import { viewsOf } from './addresses.ts';
import type { Fleet } from './fleet.ts';
import type { Model, Op } from './model.ts';

// What can happen to a ledger, as commands of fast-check. A command says what is meant ("the third lease");
// what that is comes out when it runs.

export const HOSTS = ['h1', 'h2', 'h3'] as const;

// Three networks that change, overlap each other at times, let what was released rest or not, and have one
// family or two. What is closed is closed two at a time: what hosts have to let go of is tried in leaving.test.ts.
const DEFINITIONS: Readonly<Record<string, readonly object[]>> = {
  a: [
    { subnet: '10.0.0.0/29' },
    { subnet: '10.0.0.0/29', exclude: ['10.0.0.4/31'], reservations: { w0: '10.0.0.2' } },
    { subnet: '10.0.0.0/28', exclude: ['10.0.0.2/31', '10.0.0.8/30'], reuseDelaySeconds: 60 },
    { subnet: '10.0.0.8/29', pool: { start: '10.0.0.10', end: '10.0.0.12' } },
  ],
  b: [
    { subnet: '10.0.0.8/29' },
    { subnet: '10.0.0.8/29', reservations: { w1: '10.0.0.9', w2: '10.0.0.13' } },
    { subnet: '10.0.0.8/30' },
    {
      subnet: '10.0.0.0/28',
      pool: { start: '10.0.0.2', end: '10.0.0.9' },
      exclude: ['10.0.0.12/31'],
    },
  ].map((keys) => ({ ...keys, reuseDelaySeconds: 3_600 })),
  c: [
    { subnet: '10.1.0.0/30', ipv6: { subnet: 'fd00::/126' } },
    { subnet: '10.1.0.0/29', ipv6: { subnet: 'fd00::/126', reservations: { w3: 'fd00::2' } } },
    {
      exclude: ['fd00::2/127'],
      ipv6: {
        subnet: 'fd00::/125',
        pool: { start: 'fd00::4', end: 'fd00::6' },
      },
    },
    { subnet: '10.1.0.0/29', exclude: ['10.1.0.4/31', 'fd00::'], ipv6: { subnet: 'fd00::/125' } },
  ],
};

const NETWORKS = new Map(
  Object.entries(DEFINITIONS).map(([network, variants]) => [
    network,
    variants.map((keys) => parseNetwork({ network, ...keys })),
  ]),
);

function definition(name: string, variant: number): Network {
  const network = NETWORKS.get(name)?.[variant];
  assert(network !== undefined);
  return network;
}

type Command = fc.AsyncCommand<Model, Fleet>;

const commandOf = (text: string, run: (fleet: Fleet) => Promise<void>): Command => ({
  check: () => true,
  run: async (_, fleet) => {
    await run(fleet);
    await fleet.compare();
  },
  toString: () => text,
});

/** What one client does; undefined where it has nothing to do. */
type Ask = (fleet: Fleet) => Promise<Op | undefined>;

const name = fc.constantFrom('a', 'b', 'c');
const host = fc.constantFrom(...HOSTS);

/** Of ten ids, each with its host and workload most times; two ids share a workload now and then. */
const acquire: fc.Arbitrary<Ask> = fc
  .record({
    name,
    id: fc.nat(9),
    otherHost: fc.option(host, { freq: 8 }),
    otherWorkload: fc.option(fc.nat(3), { freq: 5 }),
    asked: fc.option(fc.nat(16), { freq: 3 }),
    both: fc.boolean(),
    mac: fc.option(fc.constantFrom('02:00:00:00:00:01', '02:00:00:00:00:02'), { freq: 8 }),
    ttlSeconds: fc.option(fc.constantFrom(10, 100), { freq: 3 }),
    stale: fc.constantFrom(false, false, false, true),
  })
  .map(
    ({ id, otherHost, otherWorkload, asked, both, mac, ttlSeconds, stale, ...where }) =>
      async (fleet) => {
        const own = otherHost ?? HOSTS[id % HOSTS.length] ?? 'h1';
        const record = await fleet.known(own, where.name, stale);
        if (record === undefined) return undefined;
        const views = viewsOf(record.network);
        const addresses =
          asked === null
            ? []
            : views.slice(0, both ? 2 : 1).map(({ all }) => all[asked % all.length]);
        return {
          do: 'acquire',
          host: own,
          id: `i${id}`,
          workload: `w${otherWorkload ?? id % 4}`,
          record,
          addresses: addresses.filter((address) => address !== undefined),
          ...(mac !== null && { mac }),
          ...(ttlSeconds !== null && { ttlSeconds }),
        };
      },
  );

/** The same once more: as after a time-out, or to extend it. */
const renew: fc.Arbitrary<Ask> = fc
  .record({ which: fc.nat(9), ttlSeconds: fc.option(fc.constantFrom(10, 100), { freq: 2 }) })
  .map(({ which, ttlSeconds }) => async (fleet) => {
    const leases = [...fleet.model.leases.values()];
    const lease = leases[which % leases.length]?.lease;
    if (lease === undefined) return undefined;
    const { id, host: holder, workload, network } = lease;
    const record = await fleet.known(holder, network, false);
    if (record === undefined) return undefined;
    const ttl = ttlSeconds === null ? {} : { ttlSeconds };
    return { do: 'acquire', host: holder, id, workload, record, addresses: [], ...ttl };
  });

/** Of a lease that is there, by whoever holds it; or late, by another, or of nothing. */
const release: fc.Arbitrary<Ask> = fc
  .record({
    which: fc.nat(9),
    cool: fc.boolean(),
    late: fc.constantFrom(false, false, false, true),
    byOther: fc.constantFrom(false, false, false, true),
    host,
  })
  .map(({ which, cool, late, byOther, host: other }) => async ({ model }) => {
    const leases = [...model.leases.values()];
    const lease = leases[which % (leases.length + 1)]?.lease;
    if (lease === undefined)
      return { do: 'release', host: other, id: `i${which}`, generation: 1, cool };
    const { id, generation } = lease;
    return {
      do: 'release',
      host: byOther ? other : lease.host,
      id,
      generation: generation - (late ? 1 : 0),
      cool,
    };
  });

const put: fc.Arbitrary<Ask> = fc
  .record({ name, variant: fc.nat(3), revision: fc.constantFrom('right', 'right', 'late', 'none') })
  .map(({ name: network, variant, revision }) => async ({ model }) => {
    const now = model.networks.get(network)?.revision;
    const replaced = {
      right: now,
      late: now === undefined ? 1 : Math.max(1, now - 1),
      none: undefined,
    };
    return {
      do: 'put',
      network: definition(network, variant),
      revision: replaced[revision],
    };
  });

const remove: fc.Arbitrary<Ask> = name.map((network) => async () => ({
  do: 'delete',
  name: network,
}));

const alone = (what: string, ask: fc.Arbitrary<Ask>): fc.Arbitrary<Command> =>
  ask.map((asked) =>
    commandOf(what, async (fleet) => {
      const op = await asked(fleet);
      if (op !== undefined) await fleet.do(op);
    }),
  );

const together: fc.Arbitrary<Command> = fc
  .array(
    fc.oneof(
      { weight: 5, arbitrary: acquire },
      { weight: 1, arbitrary: renew },
      { weight: 4, arbitrary: release },
      { weight: 1, arbitrary: put },
      { weight: 1, arbitrary: remove },
    ),
    { minLength: 2, maxLength: 4 },
  )
  .map((asks) =>
    commandOf('at once', async (fleet) => {
      const ops: Op[] = [];
      for (const ask of asks) {
        const op = await ask(fleet);
        if (op !== undefined) ops.push(op);
      }
      if (ops.length > 0) await fleet.doAll(ops);
    }),
  );

const elapse: fc.Arbitrary<Command> = fc
  .constantFrom(0.001, 10, 59.999, 60, 60, 3_599.999, 3_600)
  .map((seconds) => commandOf('time', (fleet) => fleet.elapse(seconds)));

const setClock: fc.Arbitrary<Command> = fc
  .constantFrom(-7_200, 7_200, -59, -0.5)
  .map((seconds) => commandOf('clock', (fleet) => fleet.setClock(seconds)));

const beat: fc.Arbitrary<Command> = host.map((one) =>
  commandOf('beat', (fleet) => fleet.beat(one)),
);

const copy: fc.Arbitrary<Command> = fc.constant(commandOf('copy', (fleet) => fleet.copy()));

const lose: fc.Arbitrary<Command> = fc
  .record({
    how: fc.constantFrom('emptied' as const, 'turned back' as const, 'restarted' as const),
    first: fc.nat(2),
  })
  .map(({ how, first }) => commandOf(how, (fleet) => fleet.lose(how, first)));

/** A key is gone, or a part of one; before it is noticed, hosts ask for more. */
const damage: fc.Arbitrary<Command> = fc
  .record({
    key: fc.nat(999),
    entry: fc.option(fc.nat(99)),
    meanwhile: fc.array(fc.oneof(acquire, acquire, renew), { maxLength: 4 }),
  })
  .map(({ meanwhile, ...which }) =>
    commandOf('damage', async (fleet) => {
      const ops: Op[] = [];
      for (const ask of meanwhile) {
        const op = await ask(fleet);
        if (op !== undefined) ops.push(op);
      }
      await fleet.damage(which, ops);
    }),
  );

/** What others do while a host is away: perhaps they are given what it had. */
const forget: fc.Arbitrary<Command> = fc
  .record({ host, meanwhile: fc.array(acquire, { maxLength: 4 }) })
  .map(({ host: gone, meanwhile }) =>
    commandOf('forget', (fleet) =>
      fleet.forget(gone, async () => {
        for (const ask of meanwhile) {
          const op = await ask(fleet);
          if (op !== undefined && 'host' in op && op.host !== gone) await fleet.do(op);
        }
      }),
    ),
  );

export const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 12, arbitrary: alone('acquire', acquire) },
  { weight: 3, arbitrary: alone('renew', renew) },
  { weight: 8, arbitrary: alone('release', release) },
  { weight: 3, arbitrary: alone('put', put) },
  { weight: 1, arbitrary: alone('delete', remove) },
  { weight: 6, arbitrary: together },
  { weight: 4, arbitrary: elapse },
  { weight: 2, arbitrary: beat },
  { weight: 1, arbitrary: copy },
  { weight: 2, arbitrary: lose },
  { weight: 2, arbitrary: forget },
  { weight: 1, arbitrary: setClock },
  { weight: 1, arbitrary: damage },
);

/** The first step of a history: a fleet without networks has little to tell. */
export const beginning: fc.Arbitrary<readonly number[]> = fc.array(fc.nat(3), {
  minLength: 3,
  maxLength: 3,
});

export async function begin(fleet: Fleet, variants: readonly number[]): Promise<void> {
  for (const [index, network] of [...NETWORKS.keys()].entries()) {
    const defined = definition(network, variants[index] ?? 0);
    await fleet.do({ do: 'put', network: defined, revision: undefined });
  }
}

/**
 * The last steps: all that is held is released, and rests. Then each pool gives each of its addresses once, and
 * no other; and when these have been released too, none of them sooner than it may.
 */
export async function drain(fleet: Fleet): Promise<void> {
  const { model } = fleet;
  await releaseAll(fleet);
  // Time that was ahead of the server's clock stands still while a clock catches up.
  for (const from = model.nowMs; model.nowMs < from + 7_200_000;) await fleet.elapse(7_200);
  for (const network of model.networks.keys()) {
    const record = await fleet.known('h1', network, false);
    assert(record !== undefined);
    const views = viewsOf(record.network);
    const count = Math.min(...views.map(({ pool }) => pool.length));
    const ask = (n: number, workload: string): Promise<void> =>
      fleet.do(
        { do: 'acquire', host: 'h1', id: `${network}-${n}`, workload, record, addresses: [] },
        { watched: false },
      );
    for (let n = 0; n <= count; n += 1) await ask(n, 'last');
    assert.equal(
      model.leasesOf('h1').length,
      count,
      `${network} gave not all of ${count} addresses`,
    );
    await releaseAll(fleet);
    const delay = record.network.reuseDelaySeconds;
    if (delay > 0) await fleet.elapse(delay - 0.001);
    await ask(count, 'after');
    await fleet.elapse(0.001);
    await ask(count, 'after');
    await releaseAll(fleet);
  }
}

async function releaseAll(fleet: Fleet): Promise<void> {
  for (const { lease } of fleet.model.leases.values()) {
    const { id, host: holder, generation } = lease;
    await fleet.do({ do: 'release', host: holder, id, generation, cool: true }, { watched: false });
  }
}
