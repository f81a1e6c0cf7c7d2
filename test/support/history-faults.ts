import assert from 'node:assert/strict';
import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { VoltError } from '#protocol/errors.ts';
import { clockedLibrary, setClock, unsetClock } from '../ipam-store/clocked.ts';
import { beatOf, openLedger, ROOT } from '../ipam-store/fixture.ts';
import { until } from './agent.ts';
import type { Hosts } from './hosts.ts';
import type { Server } from './servers.ts';

/** What happens to Redis in the midst of it. */
export type Fault = (redis: Server, fleet: Hosts) => Promise<void>;

/** Killed; it comes back with what its log holds. */
export const crash: Fault = async (redis) => {
  await redis.kill();
  await sleep(200);
  await redis.restart();
};

/** Killed, and its disk is empty. */
export const wipe: Fault = async (redis) => {
  await redis.kill();
  rmSync(join(redis.folder, 'appendonlydir'), { recursive: true, force: true });
  await redis.restart();
};

/** The same while the agent of a host is stopped, until `meanwhile` is over. */
export const wipeUnheard =
  ({ unheard, meanwhile }: { unheard: string; meanwhile: () => Promise<unknown> }): Fault =>
  async (redis, fleet) => {
    await redis.kill();
    // Not before: whoever is silent while Redis answers becomes suspect, and is not waited for.
    const { pid } = fleet.agent(unheard);
    process.kill(pid, 'SIGSTOP');
    try {
      await wipe(redis, fleet);
      await meanwhile();
    } finally {
      process.kill(pid, 'SIGCONT');
    }
  };

/** Stopped for longer than anybody waits, and longer than it takes to become suspect. */
export const pause: Fault = async (redis) => {
  redis.pause();
  await sleep(5_000);
  redis.resume();
};

/** A copy of its log as it is now; the fault is that Redis comes back with this. */
export function backupOf(redis: Server): Fault {
  const copy = mkdtempSync(join(tmpdir(), 'volt-test-backup-'));
  cpSync(join(redis.folder, 'appendonlydir'), copy, { recursive: true });
  return async (server) => {
    await server.kill();
    rmSync(join(server.folder, 'appendonlydir'), { recursive: true, force: true });
    cpSync(copy, join(server.folder, 'appendonlydir'), { recursive: true });
    rmSync(copy, { recursive: true, force: true });
    await server.restart();
  };
}

/** One key of the ledger is gone, as after an eviction; an operator has it repaired. */
export const loss =
  (key: string): Fault =>
  async (redis, { client }) => {
    await using raw = rawOf(redis);
    await raw.client.del(`${ROOT}:${key}`);
    await sleep(500);
    const repaired = async (): Promise<boolean> =>
      (await client.checkLedger({ repair: true }, { timeoutMs: 30_000 })).inSync;
    await until('the ledger is repaired', () => repaired().catch(isRetryable), 60_000);
  };

/** Another machine calls itself a host that lives, and would end and take what it can. */
export const impostor: Fault = async (redis) => {
  const ledger = await openLedger(redis.url);
  const who = { host: 'h1', machineId: 'impostor', agentId: 'impostor', bootId: 'impostor' };
  try {
    const refusals = [() => ledger.heartbeat({ ...beatOf('h1'), ...who })];
    const { leases } = await ledger.listLeases({ host: 'h1' });
    const ends = leases.map(({ id, generation }) => () => {
      return ledger.release({ ...who, id, generation, cool: false });
    });
    for (const act of [...refusals, ...ends]) {
      const code = await act().then(
        () => 'done',
        (error: unknown) => (error instanceof VoltError ? error.code : String(error)),
      );
      assert.match(code, /^(HOST_CONFLICT|RECOVERING)$/, `another machine acts as h1: ${code}`);
    }
  } finally {
    await ledger.close();
  }
};

/** The clock of Redis is two hours back for a moment, and then right again. */
export const setBack: Fault = async (redis) => {
  await using raw = rawOf(redis);
  await raw.client.call('FUNCTION', 'LOAD', 'REPLACE', clockedLibrary());
  await sleep(1_000);
  for (let step = 0; step < 10; step += 1) {
    await setClock(raw.client, Date.now() - 7_200_000);
    await sleep(100);
  }
  await unsetClock(raw.client);
};

const rawOf = ({ url }: Server): { client: Redis } & AsyncDisposable => {
  const client = new Redis(url);
  return {
    client,
    [Symbol.asyncDispose]: async () => {
      await client.quit();
    },
  };
};

/** False, to be asked again. */
function isRetryable(error: unknown): false {
  if (error instanceof VoltError && error.retryable) return false;
  throw error;
}
