import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { askFor, bare, put, small, useStore, owned } from './fixture.ts';
import { attempt, codeOr, five, mistake } from './mistakes.ts';

// Mistakes with what was released: given again too soon, or never.

const store = useStore(['--appendonly', 'yes', '--appendfsync', 'always']);

mistake(store, 'reuse too soon, also after a restart', {
  seenAt: 'moby#36069, amazon-vpc-cni-k8s#1127',
  scenario: async (world) => {
    const pool = { start: '10.9.0.2', end: '10.9.0.3' };
    const record = await five(world, { pool, reuseDelaySeconds: 30 });
    const { lease } = await world.ledger.acquire(askFor(record, 'a'));
    await attempt(world.ledger, record, 'b');
    await world.ledger.release({ ...owned(lease), cool: true });
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
        [
          "redis.call('ZADD', pool_key(root, network, family, 'free'), digits(at), address)\n  end\nend",
          "memories[address] = at\n    redis.call('ZADD', pool_key(root, network, family, 'free'), '0', address)\n  end\nend",
        ],
        ['tonumber(free[index + 1])', '(memories[free[index]] or 0)'],
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
    await world.ledger.release({ ...owned(lease), cool: true });
    await world.ledger.deleteNetwork('small');
    const anew = await put(world.ledger, small({ network: 'anew', reuseDelaySeconds: 30 }));
    const given = await attempt(world.ledger, anew, 'b');
    assert.notEqual(given, bare(lease), `${given} was reused too soon`);
  },
  mutants: {
    'what rests goes with its network': {
      patches: [['tonumber(at) < UNTIL_LET_GO and tonumber(at) + delay > now', 'false']],
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
    for (const lease of leases) await world.ledger.release({ ...owned(lease), cool: true });
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
      patches: [['free = unused - cooling', 'free = unused']],
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
          '{ network = batch.name, family = tonumber(family) }, wait or nil)',
          '{ network = batch.name, family = tonumber(family) })',
        ],
      ],
      shows: /nobody says when/,
    },
  },
});
