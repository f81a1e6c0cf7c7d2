import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, onTestFinished, test } from 'vitest';
import { Clocks } from '#agent/health/clocks.ts';
import { createLog } from '#agent/log.ts';
import { NetworkRevisions } from '#agent/fleet/network-revisions.ts';
import { Session, type SessionOptions } from '#agent/fleet/session.ts';
import { Standing } from '#agent/fleet/standing.ts';
import { LedgerWatermark } from '#agent/fleet/ledger-watermark.ts';
import { Ledger, type Pulse } from '#ipam-store/ledger.ts';
import { askFor, optionsFor, put, until, useStore, ROOT, VOLT0 } from '../../ipam-store/fixture.ts';
import { forgetMemory, Member } from '../../ipam-store/member.ts';
import { acquireMany } from '../../ipam-store/bulk.ts';

const store = useStore();
const log = createLog('silent', 'h1');

/** Counts what is sent. */
class CountingLedger extends Ledger {
  beats = 0;

  override heartbeat(beat: Parameters<Ledger['heartbeat']>[0]): Promise<Pulse> {
    this.beats += 1;
    return super.heartbeat(beat);
  }
}

/** The session of a host that holds nothing, with a connection of its own. */
async function sessionOf(
  host: string,
  isNewFleet = (): Promise<boolean> => Promise.resolve(true),
  followers: SessionOptions['followers'] = { follows: () => ({}), note: () => {} },
): Promise<{ session: Session; ledger: CountingLedger }> {
  const stateDir = mkdtempSync(join(tmpdir(), 'volt-test-session-'));
  const ledger = new CountingLedger(optionsFor(store.server.url));
  ledger.start();
  await until(() => ledger.status.state === 'ready');
  const watermark = new LedgerWatermark({ stateDir, log });
  const session = new Session({
    self: { host, machineId: `machine-${host}`, agentId: `agent-${host}`, bootId: 'boot-1' },
    heartbeatSeconds: 5,
    suspectAfterSeconds: 20,
    recoveryWindowSeconds: null,
    ledger,
    watermark,
    revisions: new NetworkRevisions({
      host,
      ledger,
      watermark,
      apply: () => Promise.resolve(),
      bridged: () => [],
      log,
    }),
    clocks: new Clocks(),
    standing: new Standing(),
    followers,
    log,
    hostLeases: {
      leases: () => [],
      lease: () => undefined,
      expire: () => Promise.resolve(),
      fence: () => Promise.resolve(),
      settle: () => Promise.resolve({ kept: [], released: [] }),
      tellEnd: () => {},
    },
    events: { add: () => {} },
    isNewFleet,
    onOpen: () => {},
  });
  ledger.beatWith(() => session.beat());
  onTestFinished(async () => {
    session.stop();
    await ledger.close();
    // What it has seen may still be on its way there.
    rmSync(stateDir, { recursive: true, force: true, maxRetries: 5 });
  });
  return { session, ledger };
}

test('what waits for a recovery shares heartbeats, however much it is', async () => {
  const { session, ledger } = await sessionOf('h1');
  await session.beat();
  const record = await put(store.ledger, VOLT0);
  // Others have to be heard, and are not.
  await forgetMemory(store.raw);
  ledger.beats = 0;
  const waiting = Array.from({ length: 50 }, async (_, n) => {
    await sleep(n * 5);
    const asked = ledger.acquire(askFor(record, `n${n}`), { deadline: performance.now() + 1_000 });
    await asked.catch((error: unknown) => expect(error).toMatchObject({ code: 'RECOVERING' }));
  });
  await Promise.all(waiting);
  // Of each pause, which doubles, there is one: all fifty would send hundreds.
  expect(ledger.beats).toBeLessThanOrEqual(12);
  expect(ledger.beats).toBeGreaterThan(0);
});

test('what waits for a recovery is done with the answer that ends it', async () => {
  const { session, ledger } = await sessionOf('h1');
  await session.beat();
  const record = await put(store.ledger, VOLT0);
  await forgetMemory(store.raw);
  const granted = ledger.acquire(askFor(record, 'one'), { deadline: performance.now() + 8_000 });
  for (const host of ['h2', 'h3']) {
    const other = await sessionOf(host);
    await other.session.beat();
  }
  expect(await granted).toMatchObject({ created: true });
});

test('a host that re-asserts brings back no network that was deleted meanwhile', async () => {
  const { session } = await sessionOf('h1');
  await session.beat();
  await put(store.ledger, VOLT0);
  await session.beat();
  await store.ledger.deleteNetwork('volt0');
  // As after a lease of this host was taken from it.
  await store.raw.hdel(`${ROOT}:host:h1`, 'asserted');
  await session.beat();
  expect(await store.raw.hget(`${ROOT}:host:h1`, 'asserted')).not.toBeNull();
  expect(await store.ledger.getNetwork('volt0')).toBeNull();
});

test('of many hosts before an empty ledger one asks the others', async () => {
  await store.raw.flushall();
  await forgetMemory(store.raw);
  const asked: string[] = [];
  const never = new Promise<boolean>(() => {});
  const hosts = Array.from({ length: 10 }, (_, n) => `new${n}`);
  const sessions = await Promise.all(
    hosts.map((host) =>
      sessionOf(host, () => {
        asked.push(host);
        return never;
      }),
    ),
  );
  const began = performance.now();
  for (const { session } of sessions) session.start();
  await until(() => sessions.every(({ session }) => session.status.state === 'unclaimed'));
  // One in two seconds, should the machine be so busy.
  const turns = 1 + Math.floor((performance.now() - began) / 2_000);
  expect(asked.length).toBeLessThanOrEqual(turns);
  expect(asked.length).toBeGreaterThan(0);
});

test('another host asks where the first one gets no answer', async () => {
  await store.raw.flushall();
  await forgetMemory(store.raw);
  const silent = await sessionOf('silent', () => new Promise<boolean>(() => {}));
  void silent.session.beat();
  await until(() => silent.session.status.state === 'unclaimed');
  const other = await sessionOf('other');
  other.session.start();
  await until(() => other.session.status.open);
});

test('a heartbeat names what is followed, and those that have moved are told', async () => {
  const record = await put(store.ledger, VOLT0);
  const { position = '' } = await store.ledger.snapshot(record.network.network);
  let follows: Record<string, string> = { volt0: position };
  const moved: (readonly string[])[] = [];
  const { session } = await sessionOf('h1', undefined, {
    follows: () => ({ follows }),
    note: (pulse) => moved.push(pulse.moved),
  });
  await session.beat();
  expect(new Set(moved.flat())).toEqual(new Set());
  follows = { volt0: '1-1' };
  await session.beat();
  expect(moved.at(-1)).toEqual(['volt0']);
});

test('what silent hosts have left is given back by one that goes on with it at once', async () => {
  const { session } = await sessionOf('h1');
  await session.beat();
  const network = { network: 'lost', subnet: '10.60.0.0/20', reclaimAfterSeconds: 1 };
  const record = await put(store.ledger, network);
  const [silent, other] = ['h2', 'h3'].map(
    (host) => new Member(store.ledger, host, { suspectAfterSeconds: 0.3 }),
  );
  if (silent === undefined || other === undefined) throw new Error('no members');
  await silent.turn();
  await session.beat();
  await silent.turn();
  const asks = Array.from({ length: 1_500 }, (_, n) => askFor(record, `n${n}`, { host: 'h2' }));
  await acquireMany(store.ledger, asks);
  for (let fallen: readonly string[] = []; !fallen.includes('h2'); await sleep(20)) {
    ({ fallen } = await other.beat());
  }
  const held = (): Promise<number> => store.raw.zcard(`${ROOT}:net:lost:4:held`);
  expect(await held()).toBe(1_500);
  session.start();
  let left = 1_500;
  const looking = setInterval(() => void held().then((count) => (left = count)), 50);
  onTestFinished(() => clearInterval(looking));
  // A hundred with each heartbeat: at one each period it would take longer than this waits.
  await until(() => left === 0);
});
