import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import type { NetworkRecord } from '#ipam-store/ledger.ts';
import { askFor, bare, put, small, useStore } from './fixture.ts';
import { restoreGolden } from './golden.ts';
import { attempt, codeOr, mistake, type World } from './mistakes.ts';

// How peers got duplicate or lost addresses, each as a scenario that the ledger must live through; and the
// proof of the scenario: with the mistake made in a copy of the function library, it fails.

const store = useStore(['--appendonly', 'yes', '--appendfsync', 'always']);

const CLIENTS = 6;

/** Of five addresses, .2 to .6. */
const five = (world: World, keys: object = {}): Promise<NetworkRecord> =>
  put(world.ledger, small({ reuseDelaySeconds: 0, ...keys }));

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
      patches: [['if network[1] ~= ask.revision then', 'if false then']],
      shows: /a stale request was granted/,
    },
  },
});

mistake(store, 'a release keyed by a name that was used again', {
  seenAt: 'whereabouts#176: the pod of a StatefulSet',
  scenario: async (world) => {
    const record = await five(world);
    const { lease: first } = await world.ledger.acquire(askFor(record, 'web-0'));
    await world.ledger.release({ ...first, cool: true });
    const { lease: second } = await world.ledger.acquire(askFor(record, 'web-0'));
    // The release of the first comes once more, late.
    const other = await world.other();
    const late = await codeOr(other.release({ ...first, cool: true }));
    assert.deepEqual(await world.ledger.getLease('web-0'), second, 'a live lease was freed');
    assert.equal(late, 'STALE_GENERATION');
    for (let n = 0; n < 4; n += 1) await attempt(other, record, `n${n}`);
    assert.equal(await attempt(other, record, 'more'), 'POOL_EXHAUSTED');
  },
  mutants: {
    'a release does not compare the generation': {
      patches: [['if lease.generation ~= ask.generation then', 'if false then']],
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
    const { due } = await world.ledger.heartbeat({ host: 'h1', machineId: 'm1', bootId: 'boot-1' });
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
          '    due[index] = cjson.encode({ id = id, generation = lease_of(root, id).generation })',
          '    local lease = lease_of(root, id)\n    due[index] = cjson.encode({ id = id, generation = lease.generation })\n    end_lease(root, lease, now, true)',
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
    assert.equal(await world.ledger.release({ ...b, cool: true }), 'released');
    const left = (await world.ledger.listLeases({})).leases.map(({ id }) => id);
    assert.deepEqual(left, ['a', 'new', 'r'], 'a release took more than its own');
  },
  mutants: {
    'the owner of an address is written in another form': {
      patches: [
        [
          "redis.call('ZRANGEBYLEX', key, '[' .. address .. ' ', '(' .. address .. '!', 'LIMIT', 0, 1)",
          "redis.call('ZRANGEBYLEX', key, '[' .. address .. '/', '(' .. address .. '0', 'LIMIT', 0, 1)",
        ],
      ],
      shows: /10\.9\.0\.3.* was given to a thief/,
    },
    'the host of a lease has another name': {
      patches: [
        [
          'if lease.host ~= ask.host then\n    return refuse(',
          'if lease.owner ~= ask.host then\n    return refuse(',
        ],
      ],
      shows: /a lease is not recognised/,
    },
  },
});

mistake(store, 'two hosts claim one block', {
  seenAt: 'libcalico#58, libcalico-go#778',
  scenario: async (world) => {
    const other = await world.other();
    const block = (network: string): object => ({ network, subnet: '10.9.0.0/29' });
    const around = (network: string): object => ({ network, subnet: '10.9.0.0/24' });
    const outcomes = await Promise.all([
      codeOr(put(world.ledger, block('east')).then(() => 'put')),
      codeOr(put(other, around('west')).then(() => 'put')),
      codeOr(put(other, block('south')).then(() => 'put')),
    ]);
    const addresses: string[] = [];
    for (const { network, revision } of (await world.ledger.listNetworks()).networks) {
      addresses.push(await attempt(other, { network, revision }, `in-${network.network}`));
    }
    assert.equal(new Set(addresses).size, addresses.length, `twice: ${addresses.join(' ')}`);
    assert.deepEqual(outcomes.toSorted(), ['NETWORK_CONFLICT', 'NETWORK_CONFLICT', 'put']);
  },
  mutants: {
    'a put does not look for overlaps': {
      patches: [['    if other ~= name then\n', '    if false then\n']],
      shows: /twice: 10\.9\.0\.1/,
    },
    'a put finds only what begins inside': {
      patches: [['return other_last >= first and other or nil', 'return nil']],
      shows: /twice: 10\.9\.0\.1/,
    },
  },
});

mistake(store, 'reuse too soon, also after a restart', {
  seenAt: 'moby#36069, amazon-vpc-cni-k8s#1127',
  scenario: async (world) => {
    const pool = { start: '10.9.0.2', end: '10.9.0.3' };
    const record = await five(world, { pool, reuseDelaySeconds: 30 });
    const { lease } = await world.ledger.acquire(askFor(record, 'a'));
    await attempt(world.ledger, record, 'b');
    await world.ledger.release({ ...lease, cool: true });
    const expectRest = async (when: string): Promise<void> => {
      const answer = await codeOr(
        world.ledger.acquire(askFor(record, 'c')).then((got) => bare(got.lease)),
      );
      assert.equal(answer, 'POOL_EXHAUSTED', `${answer} was reused too soon ${when}`);
      const asked = await attempt(world.ledger, record, 'c', { addresses: [bare(lease)] });
      assert.equal(asked, 'ADDRESS_IN_USE', `${asked} was reused too soon ${when}, by name`);
    };
    await expectRest('after the release');
    await world.restart();
    await expectRest('after a restart');
    assert.equal(await attempt(world.ledger, record, 'again', { workload: 'vm-a' }), bare(lease));
  },
  mutants: {
    'nobody asks how long an address has rested': {
      patches: [['if wait and wait <= 0 then', 'if wait then']],
      shows: /10\.9\.0\.2 was reused too soon after the release/,
    },
    'not where it is asked for': {
      patches: [['if rest > 0 and workload ~= ask.workload then', 'if false then']],
      shows: /10\.9\.0\.2 was reused too soon after the release, by name/,
    },
    'the time of a release is in memory only': {
      patches: [
        ['-- Notes who had an address last, and when.\n', 'local RELEASED = {}\n'],
        [
          "redis.call('ZADD', pool_key(root, network, family, 'free'), digits(at), address)\n  end\nend",
          "RELEASED[address] = at\n    redis.call('ZADD', pool_key(root, network, family, 'free'), '0', address)\n  end\nend",
        ],
        ['tonumber(oldest[2])', '(RELEASED[oldest[1]] or 0)'],
      ],
      shows: /10\.9\.0\.2 was reused too soon after a restart/,
    },
  },
});

mistake(store, 'reuse too soon: of a network made anew', {
  seenAt: 'plugins#756',
  scenario: async (world) => {
    const record = await five(world, { reuseDelaySeconds: 30 });
    const { lease } = await world.ledger.acquire(askFor(record, 'a'));
    await world.ledger.release({ ...lease, cool: true });
    await world.ledger.deleteNetwork('small');
    const anew = await put(world.ledger, small({ network: 'anew', reuseDelaySeconds: 30 }));
    const given = await attempt(world.ledger, anew, 'b');
    assert.notEqual(given, bare(lease), `${given} was reused too soon`);
  },
  mutants: {
    'what rests goes with its network': {
      patches: [['if at + delay > now then', 'if false then']],
      shows: /10\.9\.0\.2 was reused too soon/,
    },
  },
});

mistake(store, 'cooling addresses not counted, so the pool starves', {
  seenAt: 'amazon-vpc-cni-k8s#1700, #2896',
  scenario: async (world) => {
    const pool = { start: '10.9.0.2', end: '10.9.0.4' };
    const record = await five(world, { pool, reuseDelaySeconds: 1 });
    const ids = ['a', 'b', 'c'];
    for (const id of ids) await attempt(world.ledger, record, id);
    const { leases } = await world.ledger.listLeases({ network: 'small' });
    for (const lease of leases) await world.ledger.release({ ...lease, cool: true });
    const usage = (await world.ledger.getNetwork('small'))?.usage;
    assert.deepEqual(
      { size: usage?.size, used: usage?.used, free: usage?.free, cooling: usage?.cooling },
      { size: 3, used: 0, free: 0, cooling: 3 },
      'an address is counted twice, or not at all',
    );
    let waitMs: number | undefined;
    await world.ledger.acquire(askFor(record, 'd')).catch((error: { retryAfterMs?: number }) => {
      waitMs = error.retryAfterMs;
    });
    assert(waitMs !== undefined && waitMs <= 1_000, 'nobody says when an address will be free');
    await sleep(1_010);
    const given = [];
    for (const id of ['e', 'f', 'g']) given.push(await attempt(world.ledger, record, id));
    assert.deepEqual(given, ['10.9.0.2', '10.9.0.3', '10.9.0.4'], 'the pool starves');
  },
  mutants: {
    'the usage counts what rests as free': {
      patches: [['free = rules.poolSize - in_pool - cooling', 'free = rules.poolSize - in_pool']],
      shows: /counted twice, or not at all/,
    },
    'a release forgets the address': {
      patches: [
        [
          "redis.call('ZADD', pool_key(root, network, family, 'free'), digits(at), address)\n  end\nend",
          'local _ = at\n  end\nend',
        ],
      ],
      shows: /counted twice, or not at all/,
    },
    'nobody waits for what rests': {
      patches: [
        [
          '{ network = ask.network, family = tonumber(family) }, wait or nil)',
          '{ network = ask.network, family = tonumber(family) })',
        ],
      ],
      shows: /nobody says when/,
    },
  },
});
