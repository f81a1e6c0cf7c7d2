import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { askFor, beatOf, put, small, useStore, owned } from './fixture.ts';
import { restoreGolden } from './golden.ts';
import { attempt, codeOr, five, mistake } from './mistakes.ts';
import type { Patch } from './mutants.ts';

// How peers got duplicate or lost addresses, each as a scenario that the ledger must live through; and the
// proof of the scenario: with the mistake made in a copy of the function library, it fails.

const store = useStore();

const CLIENTS = 6;

/** Two mistakes, since what one index says is compared with another: an address is not fresh either. */
const NEITHER_IS_FOUND: Patch = [
  "elseif is_in(batch.key .. ':' .. family .. ':allowed', address)",
  'elseif false',
];

mistake(store, 'read, modify, write without compare: of an address', {
  seenAt: 'whereabouts#110',
  scenario: async (world) => {
    const record = await five(world);
    const ledgers = await Promise.all(Array.from({ length: CLIENTS }, () => world.other()));
    // Each reads that .4 is free, and each then asks for it.
    const free = await Promise.all(
      ledgers.map((ledger) => ledger.listLeases({ network: 'small' })),
    );
    assert(free.every(({ leases }) => leases.length === 0));
    const got = await Promise.all(
      ledgers.map((ledger, n) => attempt(ledger, record, `n${n}`, { addresses: ['10.9.0.4'] })),
    );
    const holders = got.filter((address) => address === '10.9.0.4');
    assert.equal(holders.length, 1, `${holders.length} ids hold 10.9.0.4`);
    assert.equal(got.filter((code) => code === 'ADDRESS_IN_USE').length, CLIENTS - 1);
  },
  mutants: {
    'what is asked for is not compared with what is held': {
      patches: [
        [
          "  if id then\n    return refuse('ADDRESS_IN_USE'",
          "  if false then\n    return refuse('ADDRESS_IN_USE'",
        ],
        NEITHER_IS_FOUND,
      ],
      shows: /6 ids hold 10\.9\.0\.4/,
    },
  },
});

mistake(store, 'read, modify, write without compare: of a network', {
  seenAt: 'whereabouts#110',
  scenario: async (world) => {
    const { network, revision } = await five(world);
    const other = await world.other();
    // Both have read the same revision, and each adds a reservation.
    const first = { ...network, reservations: { 'vm-a': '10.9.0.3' } };
    const second = { ...network, reservations: { 'vm-b': '10.9.0.4' } };
    const outcomes = await Promise.all([
      codeOr(world.ledger.putNetwork(first, revision).then(() => 'put')),
      codeOr(other.putNetwork(second, revision).then(() => 'put')),
    ]);
    assert.deepEqual(outcomes.toSorted(), ['NETWORK_CONFLICT', 'put'], 'an update was lost');
  },
  mutants: {
    'a put does not compare the revision': {
      patches: [
        ['if revision and ask.revision ~= revision then', 'if revision and not ask.revision then'],
      ],
      shows: /an update was lost/,
    },
  },
});

mistake(store, 'read, modify, write without compare: checked against what has changed since', {
  seenAt: 'whereabouts#110',
  scenario: async (world) => {
    const stale = await five(world);
    const now = await put(
      await world.other(),
      small({ reuseDelaySeconds: 0, reservations: { 'vm-r': '10.9.0.2' } }),
      stale.revision,
    );
    assert.equal(
      await attempt(world.ledger, stale, 'one'),
      'REVISION_CHANGED',
      'a stale request was granted',
    );
    const asked = { addresses: ['10.9.0.2'] };
    assert.equal(
      await attempt(world.ledger, stale, 'two', asked),
      'REVISION_CHANGED',
      'a reservation was given away',
    );
    assert.equal(await attempt(world.ledger, now, 'r'), '10.9.0.2');
  },
  mutants: {
    'acquire does not compare the revision': {
      patches: [['if revision ~= batch.revision then', 'if false then']],
      shows: /a stale request was granted/,
    },
  },
});

mistake(store, 'a release keyed by a name that was used again', {
  seenAt: 'whereabouts#176: the pod of a StatefulSet',
  scenario: async (world) => {
    const record = await five(world);
    const { lease: first } = await world.ledger.acquire(askFor(record, 'web-0'));
    await world.ledger.release({ ...owned(first), cool: true });
    const { lease: second } = await world.ledger.acquire(askFor(record, 'web-0'));
    // The release of the first comes once more, late.
    const other = await world.other();
    const late = await codeOr(other.release({ ...owned(first), cool: true }));
    assert.deepEqual(await world.ledger.getLease('web-0'), second, 'a live lease was freed');
    assert.equal(late, 'STALE_GENERATION');
    for (let n = 0; n < 4; n += 1) await attempt(other, record, `n${n}`);
    assert.equal(await attempt(other, record, 'more'), 'POOL_EXHAUSTED');
  },
  mutants: {
    'a release does not compare the generation': {
      patches: [['if lease.generation ~= generation then', 'if false then']],
      shows: /a live lease was freed/,
    },
  },
});

mistake(store, 'pending treated as dead: an expired lease', {
  seenAt: 'whereabouts#162',
  scenario: async (world) => {
    const record = await five(world, { pool: { start: '10.9.0.2', end: '10.9.0.2' } });
    const ttlSeconds = 0.02;
    const { lease } = await world.ledger.acquire(askFor(record, 'slow', { ttlSeconds }));
    await sleep(40);
    // Its host detaches it; until that says so, the workload may still send.
    const { due } = await world.ledger.heartbeat(beatOf('h1'));
    assert.deepEqual(due, [{ id: 'slow', generation: lease.generation }]);
    const answer = await attempt(world.ledger, record, 'other');
    assert.equal(answer, 'POOL_EXHAUSTED', `${answer} was given to another id, and not released`);
    const again = await world.ledger.acquire(askFor(record, 'slow', { ttlSeconds: 60 }));
    assert.equal(again.lease.generation, lease.generation);
  },
  mutants: {
    'the heartbeat frees what has expired': {
      patches: [
        [
          '    if generation then\n',
          '    if generation then\n      end_lease(root, lease_of(root, id), now, true)\n',
        ],
      ],
      shows: /10\.9\.0\.2 was given to another id/,
    },
  },
});

mistake(store, 'owners misread after an upgrade', {
  seenAt: 'calico#5044, neco#261',
  scenario: async (world) => {
    await restoreGolden(world.raw);
    await world.enrol();
    const record = await world.ledger.getNetwork('n');
    assert(record !== null);
    const a = { workload: 'vm-a', addresses: ['10.9.0.2', '2001:db8::1'] };
    const again = await attempt(world.ledger, record, 'a', a);
    assert.equal(again, '10.9.0.2 2001:db8::1', 'a lease is not recognised');
    const others = [];
    for (const id of ['new', 'more']) others.push(await attempt(world.ledger, record, id));
    assert.deepEqual(
      others,
      ['10.9.0.6 2001:db8::5', 'POOL_EXHAUSTED'],
      `what is held was given to others: ${others.join(', ')}`,
    );
    const taken = await attempt(world.ledger, record, 'thief', { addresses: ['10.9.0.3'] });
    assert.equal(taken, 'ADDRESS_IN_USE', `${taken} was given to a thief`);
    const b = await world.ledger.getLease('b');
    assert(b !== null);
    assert.equal(await world.ledger.release({ ...owned(b), cool: true }), 'released');
    const left = (await world.ledger.listLeases({})).leases.map(({ id }) => id);
    assert.deepEqual(left, ['a', 'new', 'r'], 'a release took more than its own');
  },
  mutants: {
    'the owner of an address is written in another form': {
      patches: [
        [
          "redis.call('ZRANGEBYLEX', key, '[' .. address .. ' ', '(' .. address .. '!', 'LIMIT', '0', '1')",
          "redis.call('ZRANGEBYLEX', key, '[' .. address .. '/', '(' .. address .. '0', 'LIMIT', '0', '1')",
        ],
        NEITHER_IS_FOUND,
      ],
      shows: /10\.9\.0\.3.* was given to a thief/,
    },
    'the host of a lease has another name': {
      patches: [
        [
          'if lease.host ~= batch.host then\n    return refuse(',
          'if lease.owner ~= batch.host then\n    return refuse(',
        ],
      ],
      shows: /a lease is not recognised/,
    },
  },
});

mistake(store, 'owners collected before reservations', {
  seenAt: 'whereabouts#207',
  scenario: async (world) => {
    const record = await five(world);
    const collector = await world.other();
    await attempt(world.ledger, record, 'web-0');
    // Reservations first, then owners: what has none is given back by the generation that was read.
    const { leases } = await collector.listLeases({ network: 'small' });
    const owners = new Map([['web-0', 0]]);
    for (const { id, generation } of leases) {
      await world.ledger.release({ ...owned({ id, generation, host: 'h1' }), cool: false });
      const { lease } = await world.ledger.acquire(askFor(record, id));
      owners.set(id, lease.generation);
    }
    for (const { id, generation, host } of leases) {
      if (owners.get(id) === generation) continue;
      await codeOr(collector.release({ ...owned({ id, generation, host }), cool: true }));
    }
    const left = (await world.ledger.listLeases({})).leases.map(({ id }) => id);
    assert.deepEqual(left, ['web-0'], 'the lease of a live owner was collected');
  },
  mutants: {
    'a release does not compare the generation': {
      patches: [['if lease.generation ~= generation then', 'if false then']],
      shows: /the lease of a live owner was collected/,
    },
  },
});
