import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Beat } from '#ipam-store/ledger.ts';
import { askFor, bare, beatOf, useStore } from './fixture.ts';
import { fleetOf, heard, type Member } from './member.ts';
import { attempt, codeOr, five, mistake, type World } from './mistakes.ts';

const store = useStore();

/** The hosts of a world, as their agents play them; nothing has happened yet. */
async function membersOf(world: World, more: Partial<Beat> = {}): Promise<Member[]> {
  await world.raw.flushall();
  await world.forget();
  return fleetOf(world.ledger, ['h1', 'h2', 'h3'], more);
}

mistake(store, 'a restart that allocates before it restored', {
  seenAt: 'allocators that live in memory',
  scenario: async (world) => {
    const [one, two, three] = await membersOf(world);
    assert(one !== undefined && two !== undefined && three !== undefined);
    const record = await five(world);
    const held = await one.acquire(record, 'held');
    await two.put(Promise.resolve(record));
    // Everything is lost, and the host that holds something is the last to come back.
    await world.raw.flushall();
    await world.forget();
    for (const member of [two, three, two, three]) await member.turn();
    const given = [await attempt(world.ledger, record, 'other', { host: 'h2' })];
    // It is heard, and has not yet said what it holds.
    const { epoch } = await one.beat();
    for (const member of [two, three]) await member.beat();
    given.push(await attempt(world.ledger, record, 'another', { host: 'h2' }));
    assert.deepEqual(
      given,
      ['RECOVERING', 'RECOVERING'],
      `${given.join(' ')} given before it restored`,
    );
    await one.reassert(epoch);
    for (const member of [one, two, three]) await member.turn();
    const next = await two.acquire(record, 'next');
    assert.notEqual(bare(next), bare(held), 'an address that is held was given away');
  },
  mutants: {
    'whoever is there is enough': {
      patches: [['if memory.missing_count > 0 or is_untold(root) then', 'if false then']],
      shows: /10\.9\.0\.2 .* given before it restored/,
    },
    'having been heard is enough': {
      patches: [['if meta.lost and not has_asserted then', 'if false then']],
      shows: /RECOVERING 10\.9\.0\.2 given before it restored/,
    },
  },
});

mistake(store, 'a lost generation is given again', {
  seenAt: 'stores restored from a backup',
  scenario: async (world) => {
    const members = await membersOf(world);
    const [one] = members;
    assert(one !== undefined);
    const record = await five(world);
    const before = await one.acquire(record, 'a');
    await world.raw.flushall();
    await world.forget();
    for (const member of [...members, ...members]) await member.turn();
    const after = await one.acquire(record, 'b');
    assert(after.generation > before.generation, `generation ${after.generation} goes back`);
  },
  mutants: {
    'the counter goes on where it is': {
      patches: [
        [
          'meta.generation = (epoch_of(math.max(seen.generation, meta.generation)) + 1) * EPOCH_UNIT',
          'meta.generation = EPOCH_UNIT',
        ],
        ['if tonumber(lease.generation) > meta.generation then', 'if false then'],
      ],
      shows: /goes back/,
    },
  },
});

mistake(store, 'a loss found by one that knows of others, and dies', {
  seenAt: 'allocators that trust whoever answers first',
  scenario: async (world) => {
    const [one, two, three] = await membersOf(world);
    assert(one !== undefined && two !== undefined && three !== undefined);
    const record = await five(world);
    await three.acquire(record, 'held');
    for (const member of [one, two]) await member.put(Promise.resolve(record));
    await world.raw.flushall();
    await world.forget();
    // Whoever has found it says what it holds, and dies before it has told whom it knows.
    await one.reassert((await one.beat()).epoch);
    await two.reassert((await two.beat()).epoch);
    await two.beat();
    const given = await attempt(world.ledger, record, 'other', { host: 'h2' });
    assert.equal(given, 'RECOVERING', `${given} given before the list was told`);
    // It has not come back when Redis restarts, and an operator forgets it.
    await world.forget();
    await two.beat();
    await world.ledger.forgetHost('h1');
    await two.beat();
    const later = await attempt(world.ledger, record, 'another', { host: 'h2' });
    assert.equal(later, 'RECOVERING', `${later} given though h2 knows of another`);
  },
  mutants: {
    'who has said what it holds is enough': {
      patches: [
        ['if memory.missing_count > 0 or is_untold(root) then', 'if memory.missing_count > 0 then'],
      ],
      shows: /10\.9\.0\.2 given (before the list was told|though h2 knows of another)/,
    },
    'a list is what one has heard of, not what it has told': {
      patches: [
        [
          '  meta.lost = true\n',
          '  meta.lost = true\n  meta.roster = math.max(meta.roster, seen.roster)\n',
        ],
        ['(owes or above or seen.roster >= meta.roster)', 'above'],
      ],
      shows: /given (before the list was told|though h2 knows of another)/,
    },
  },
});

mistake(store, 'pending treated as dead: a silent host', {
  seenAt: 'whereabouts#162',
  scenario: async (world) => {
    const [one, two] = await membersOf(world, { suspectAfterSeconds: 0.3 });
    assert(one !== undefined && two !== undefined);
    const pool = { start: '10.9.0.2', end: '10.9.0.2' };
    const record = await one.put(five(world, { pool }));
    await two.acquire(record, 'silent');
    const pulses = await heard([one], 2_500);
    assert(pulses.some(({ fallen }) => fallen.includes('h2')));
    const answer = await attempt(world.ledger, record, 'other');
    assert.equal(answer, 'POOL_EXHAUSTED', `${answer} was given to another, its host being silent`);
  },
  mutants: {
    'silence ends the leases': {
      patches: [
        [
          "known[network] = tonumber(redis.call('HGET', network_key(root, network), 'reclaimMs') or nil) or false",
          'known[network] = 0',
        ],
      ],
      shows: /10\.9\.0\.2 was given to another/,
    },
  },
});

mistake(store, 'two machines of one name are granted leases', {
  seenAt: 'libcalico-go#778',
  scenario: async (world) => {
    const record = await five(world);
    const ask = askFor(record, 'a', { machineId: 'another' });
    const answer = await codeOr(world.ledger.acquire(ask).then(({ lease }) => bare(lease)));
    assert.equal(answer, 'HOST_CONFLICT', `another machine was given ${answer}`);
    // Nor does it get the name, and what its first machine holds, by waiting.
    await attempt(world.ledger, record, 'held');
    await world.ledger.heartbeat(beatOf('h1', { suspectAfterSeconds: 0.001 }));
    await sleep(10);
    const taken = world.ledger.heartbeat(beatOf('h1', { machineId: 'another' }));
    const name = await codeOr(taken.then(() => 'its name'));
    assert.equal(name, 'HOST_CONFLICT', `another machine was given ${name}`);
  },
  mutants: {
    'a grant does not compare the machine': {
      patches: [['  if session and (session == who or', '  if session and (true or']],
      shows: /another machine was given 10\.9\.0\.2/,
    },
    'a name is free as soon as it is silent': {
      patches: [['if not live and holds == 0 then', 'if not live then']],
      shows: /another machine was given its name/,
    },
  },
});
