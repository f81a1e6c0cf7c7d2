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
// family or two.
const DEFINITIONS: Readonly<Record<string, readonly object[]>> = {
  a: [
    { subnet: '10.0.0.0/29' },
    { subnet: '10.0.0.0/29', gateway: '10.0.0.1', reservations: { w0: '10.0.0.2' } },
    { subnet: '10.0.0.0/28', exclude: ['10.0.0.3', '10.0.0.8/30'], reuseDelaySeconds: 60 },
    { subnet: '10.0.0.8/29', pool: { start: '10.0.0.10', end: '10.0.0.12' } },
  ],
  b: [
    { subnet: '10.0.0.8/29' },
    { subnet: '10.0.0.8/29', reservations: { w1: '10.0.0.9', w2: '10.0.0.13' } },
    { subnet: '10.0.0.8/30' },
    { subnet: '10.0.0.0/28', pool: { start: '10.0.0.2', end: '10.0.0.9' }, gateway: '10.0.0.14' },
  ].map((keys) => ({ ...keys, reuseDelaySeconds: 3_600 })),
  c: [
    { subnet: '10.1.0.0/30', ipv6: { subnet: 'fd00::/126' } },
    { subnet: '10.1.0.0/29', ipv6: { subnet: 'fd00::/126', reservations: { w3: 'fd00::2' } } },
    {
      ipv6: {
        subnet: 'fd00::/125',
        gateway: 'fd00::1',
        pool: { start: 'fd00::4', end: 'fd00::6' },
      },
    },
    { subnet: '10.1.0.0/29', exclude: ['10.1.0.2/31', 'fd00::'], ipv6: { subnet: 'fd00::/125' } },
  ],
};

const definition = (name: string, variant: number): Network =>
  parseNetwork({ network: name, ...DEFINITIONS[name]?.[variant] });

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

const acquire: fc.Arbitrary<Ask> = fc
  .record({
    host,
    name,
    id: fc.nat(9),
    other: fc.option(fc.nat(3), { freq: 5 }),
    asked: fc.option(fc.nat(16), { freq: 2 }),
    both: fc.boolean(),
    mac: fc.option(fc.constantFrom('02:00:00:00:00:01', '02:00:00:00:00:02'), { freq: 8 }),
    ttlSeconds: fc.option(fc.constantFrom(10, 100), { freq: 4 }),
    stale: fc.constantFrom(false, false, false, true),
  })
  .map(({ id, other, asked, both, mac, ttlSeconds, stale, ...who }) => async (fleet) => {
    const record = await fleet.known(who.host, who.name, stale);
    if (record === undefined) return undefined;
    const views = viewsOf(record.network);
    const addresses =
      asked === null ? [] : views.slice(0, both ? 2 : 1).map(({ all }) => all[asked % all.length]);
    return {
      do: 'acquire',
      host: who.host,
      id: `i${id}`,
      workload: `w${other ?? id % 4}`,
      record,
      addresses: addresses.filter((address) => address !== undefined),
      ...(mac !== null && { mac }),
      ...(ttlSeconds !== null && { ttlSeconds }),
    };
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
      { weight: 6, arbitrary: acquire },
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
  .constantFrom(0.001, 1, 9, 10, 59, 60, 61, 3_600)
  .map((seconds) => commandOf('time', (fleet) => fleet.elapse(seconds)));

const beat: fc.Arbitrary<Command> = host.map((one) =>
  commandOf('beat', (fleet) => fleet.beat(one)),
);

export const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 12, arbitrary: alone('acquire', acquire) },
  { weight: 8, arbitrary: alone('release', release) },
  { weight: 3, arbitrary: alone('put', put) },
  { weight: 1, arbitrary: alone('delete', remove) },
  { weight: 6, arbitrary: together },
  { weight: 4, arbitrary: elapse },
  { weight: 2, arbitrary: beat },
);

/** Both networks anew, whatever is held released: then the pool gives each of its addresses, and no other. */
export async function drain(fleet: Fleet): Promise<void> {
  const { model } = fleet;
  for (const { lease } of [...model.leases.values()]) {
    await fleet.do({
      do: 'release',
      host: lease.host,
      id: lease.id,
      generation: lease.generation,
      cool: true,
    });
  }
  await fleet.elapse(7_200);
  for (const network of model.networks.keys()) {
    const record = await fleet.known('h1', network, false);
    assert(record !== undefined);
    const views = viewsOf(record.network);
    const count = Math.min(...views.map(({ pool }) => pool.length));
    for (let n = 0; n <= count; n += 1) {
      await fleet.do({
        do: 'acquire',
        host: 'h1',
        id: `last-${network}-${n}`,
        workload: 'last',
        record,
        addresses: [],
      });
    }
    const given = model.leasesOf('h1').filter((lease) => lease.network === network);
    assert.equal(given.length, count, `${network} gave ${given.length} of ${count} addresses`);
  }
}
