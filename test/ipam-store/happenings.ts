import fc from 'fast-check';

// What may happen to the ledger, and to those who follow a network of it.

export const NETWORKS = ['n0', 'n1'] as const;
export const HOSTS = ['h1', 'h2'] as const;
export const FOLLOWERS = 3;
const IDS = 6;

const which = <T>(items: readonly T[]): fc.Arbitrary<T> => fc.constantFrom(...items);
const kind = <Kind extends string>(name: Kind): fc.Arbitrary<Kind> => fc.constant(name);

const network = which(NETWORKS);
const host = which(HOSTS);
const id = fc.nat({ max: IDS - 1 }).map((n) => `id${n}`);
const follower = fc.nat({ max: FOLLOWERS - 1 });
export const happening = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({ kind: kind('acquire'), network, host, id, unlogged: fc.boolean() }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ kind: kind('rename'), network, host, id, hostname: which(['a', 'b']) }),
  },
  { weight: 5, arbitrary: fc.record({ kind: kind('release'), id, unlogged: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ kind: kind('many'), network, host }) },
  { weight: 2, arbitrary: fc.record({ kind: kind('edit'), network }) },
  { weight: 2, arbitrary: fc.record({ kind: kind('remake'), network, again: fc.boolean() }) },
  { weight: 2, arbitrary: fc.record({ kind: kind('forget'), host }) },
  { weight: 2, arbitrary: fc.record({ kind: kind('beats') }) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: kind('log'),
      network,
      harm: which(['trim', 'delete', 'garbage']),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: kind('server'),
      harm: which(['restart', 'empty', 'copy', 'older']),
    }),
  },
  { weight: 6, arbitrary: fc.record({ kind: kind('nudge'), follower }) },
  { weight: 9, arbitrary: fc.record({ kind: kind('ask'), follower }) },
  { weight: 9, arbitrary: fc.record({ kind: kind('take'), follower }) },
  { weight: 3, arbitrary: fc.record({ kind: kind('drive'), follower }) },
  { weight: 1, arbitrary: fc.record({ kind: kind('kill'), follower, network }) },
);
export type Happening = typeof happening extends fc.Arbitrary<infer T> ? T : never;
