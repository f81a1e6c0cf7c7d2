import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { beatOf, put, small, useStore, owned } from './fixture.ts';
import { attempt, codeOr, five, mistake } from './mistakes.ts';

// Mistakes with hosts: two of one name or block, one that is gone, one that was started anew.

const store = useStore();

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

mistake(store, 'two hosts claim one name', {
  seenAt: 'libcalico-go#778',
  scenario: async (world) => {
    const other = await world.other();
    const machineId = 'machine-2';
    const answer = await codeOr(
      other.heartbeat(beatOf('h1', { machineId })).then(() => 'taken over'),
    );
    assert.equal(answer, 'HOST_CONFLICT', `a live host was ${answer}`);
  },
  mutants: {
    'a session does not compare the machine': {
      patches: [
        [
          'if known.machineId ~= ask.machineId then\n    return refuse_second',
          'if known.machineId ~= ask.machineId then\n    if true then return nil end\n    return refuse_second',
        ],
      ],
      shows: /a live host was taken over/,
    },
  },
});

mistake(store, 'the gateway collected with its host', {
  seenAt: 'calico#3589',
  scenario: async (world) => {
    const record = await five(world);
    // Two addresses that h1 had: one becomes the gateway, one leaves the pool. A third it still has, outside.
    for (const id of ['a', 'b']) await attempt(world.ledger, record, id);
    for (const lease of (await world.ledger.listLeases({ host: 'h1' })).leases) {
      await world.ledger.release({ ...owned(lease), cool: true });
    }
    const pool = { start: '10.9.0.4', end: '10.9.0.5' };
    const keys = { reuseDelaySeconds: 0, gateway: '10.9.0.2', pool };
    const now = await put(world.ledger, small(keys), record.revision);
    await attempt(world.ledger, now, 'outside', { addresses: ['10.9.0.6'] });
    // h1 is gone, and with it all that it held.
    await world.ledger.heartbeat(beatOf('h1', { suspectAfterSeconds: 0.001 }));
    await sleep(10);
    await world.ledger.forgetHost('h1');
    const given = [];
    for (let n = 0; n < 5; n += 1) {
      given.push(await attempt(world.ledger, now, `n${n}`, { host: 'h2' }));
    }
    const unasked = given.filter((one) => one !== 'POOL_EXHAUSTED');
    assert.deepEqual(unasked, ['10.9.0.4', '10.9.0.5'], `given unasked: ${unasked.join(' ')}`);
    const gateway = { host: 'h2', addresses: ['10.9.0.2'] };
    assert.equal(await attempt(world.ledger, now, 'gw', gateway), 'ADDRESS_OUT_OF_RANGE');
  },
  mutants: {
    'a pool that changes keeps what was released': {
      patches: [["remove_all(pool_key(root, network, family, 'free'), closed)", '']],
      shows: /given unasked: .*10\.9\.0\.2/,
    },
    'what is released is free, wherever it lies': {
      patches: [
        [
          `allowed'), address) then
    redis.call('ZADD', pool_key(root, network, family, 'free')`,
          `allowed'), address) or true then
    redis.call('ZADD', pool_key(root, network, family, 'free')`,
        ],
      ],
      shows: /given unasked: .*10\.9\.0\.6/,
    },
  },
});

mistake(store, 'reboot leaks', {
  seenAt: 'cni#1167, plugins#252, kubernetes#108121',
  scenario: async (world) => {
    const record = await five(world);
    for (const id of ['kept', 'a', 'b']) await attempt(world.ledger, record, id);
    await attempt(world.ledger, record, 'other', { host: 'h2' });
    // Nothing of h1 is left but its name: what it had, it learns from the ledger.
    const bootId = 'boot-2';
    await sleep(10);
    await world.ledger.heartbeat(beatOf('h1', { bootId, heartbeatSeconds: 0.001 }));
    await sleep(10);
    await attempt(world.ledger, record, 'kept', { bootId });
    const { leases } = await world.ledger.listLeases({ host: 'h1' });
    for (const lease of leases) {
      if (lease.bootId !== bootId) await world.ledger.release({ ...owned(lease), cool: true });
    }
    const left = (await world.ledger.listLeases({})).leases.map(({ id }) => id);
    assert.deepEqual(left, ['kept', 'other'], `left after a reboot: ${left.join(' ')}`);
  },
  mutants: {
    'nobody notes what a host holds': {
      patches: [["redis.call('ZADD', batch.host_ids, '0', batch.name .. ' ' .. ask.id)", '1']],
      shows: /left after a reboot: \n/,
    },
    'a lease keeps the boot that it was made in': {
      patches: [['  lease.bootId = asked.bootId\n', '']],
      shows: /left after a reboot: other/,
    },
  },
});
