import { randomUUID } from 'node:crypto';
import { readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { VoltError } from '#protocol/errors.ts';
import { Ledger } from '#ipam-store/ledger.ts';
import type { Config } from '../config.ts';
import { type Identity, IdentityError, noteHost, readIdentity, writeIdentity } from './identity.ts';
import { createLog } from '../log.ts';
import { openVmRecords } from '../storage/journal.ts';
import type { RecordLog } from '../storage/record-log.ts';
import { ownFolder, whileNoAgentRuns } from './own-folders.ts';

export interface Renamed {
  readonly from: string;
  readonly to: string;
  /** The leases that have moved in the ledger; null if it has none of this machine under the old id. */
  readonly moved: number | null;
  /** Records that have been written anew. */
  readonly records: number;
}

export interface RenameOptions {
  readonly config: Config;
  readonly machineId: string;
  readonly to: string;
  /** For what an operator waits. */
  readonly note: (text: string) => void;
}

const READY_TIMEOUT_MS = 10_000;
const POLL_MS = 50;

/**
 * Gives this host another id: in the ledger, in its records, in its state folder. Its agent must not run. A renaming
 * that was cut short goes on with the next call, and until then no agent starts here. The id may be the present one,
 * if the machine has another /etc/machine-id. Nothing is changed when this throws: IdentityError if there is nothing
 * to rename, VoltError HOST_ALIVE while an agent runs or the ledger hears the host, HOST_CONFLICT if the new id is
 * taken.
 */
export async function renameHost(options: RenameOptions): Promise<Renamed> {
  const { config, machineId, to } = options;
  const { runtimeDir, stateDir } = config;
  ownFolder('runtimeDir', runtimeDir, 0o755);
  using _lock = whileNoAgentRuns(runtimeDir);
  const identity = identityOf(stateDir, to);
  await using ledger = await openLedger(config);
  // From here on the renaming has to end: until the ledger answers, nobody knows what it has done.
  writeIdentity(stateDir, { ...identity, renamingTo: to });
  const isRefused = identity.yieldsTo !== undefined;
  // The leases that the ledger has under the old id are another machine's then.
  const moved = isRefused ? null : await moveLeases(ledger.ledger, identity, options);
  const records = new Set<string>();
  for (const folder of [runtimeDir, stateDir]) {
    for (const id of rewriteFiles(join(folder, 'attachments'), identity.host, to)) records.add(id);
  }
  for (const id of await rewriteCopies(
    openVmRecords(stateDir, createLog('silent', to)),
    identity.host,
    to,
  )) {
    records.add(id);
  }
  // The machine that this one was copied from has the agent id, too.
  const agentId = isRefused ? randomUUID() : identity.agentId;
  writeIdentity(stateDir, { agentId, machineId, host: to });
  noteHost(runtimeDir, to);
  return { from: identity.host, to, moved, records: records.size };
}

function identityOf(stateDir: string, to: string): Identity {
  const identity = readIdentity(stateDir);
  if (identity === undefined) {
    throw new IdentityError(
      `${stateDir} is of no host yet: an agent that starts there makes it one`,
    );
  }
  const { host, renamingTo = to } = identity;
  if (renamingTo !== to) {
    throw new IdentityError(
      `the renaming of host ${host} to ${renamingTo} was cut short: run "voltnet host rename ${renamingTo}" first`,
    );
  }
  return identity;
}

async function openLedger(config: Config): Promise<AsyncDisposable & { ledger: Ledger }> {
  const ledger = new Ledger(config.redis);
  ledger.start();
  const end = performance.now() + READY_TIMEOUT_MS;
  while (ledger.status.state !== 'ready') {
    if (performance.now() > end) {
      const { reason = 'no answer' } = ledger.status;
      await ledger.close();
      throw new VoltError('STORE_UNAVAILABLE', `Redis: ${reason}`);
    }
    await sleep(POLL_MS);
  }
  return { ledger, [Symbol.asyncDispose]: () => ledger.close() };
}

/** If the host was stopped just now, waits until the ledger takes it for silent. */
async function moveLeases(
  ledger: Ledger,
  identity: Identity,
  { config, machineId, to, note }: RenameOptions,
): Promise<number | null> {
  const { suspectAfterSeconds, stateDir } = config;
  const end = performance.now() + 1_500 * suspectAfterSeconds;
  for (let told = false; ; told = true) {
    try {
      return await ledger.renameHost(identity, { to, machineId, suspectAfterSeconds });
    } catch (error) {
      const code = error instanceof VoltError ? error.code : undefined;
      const wait = error instanceof VoltError ? error.retryAfterMs : undefined;
      if (wait !== undefined && performance.now() + wait < end) {
        if (!told)
          note(
            `waits until the ledger has not heard ${identity.host} for ${suspectAfterSeconds} s`,
          );
        await sleep(wait);
        continue;
      }
      // The ledger has said that it changed nothing.
      const isRefused = code === 'HOST_ALIVE' || code === 'HOST_CONFLICT';
      if (isRefused) writeIdentity(stateDir, identity);
      throw error;
    }
  }
}

const recordSchema = z.looseObject({
  attachment: z.looseObject({ host: z.string() }).optional(),
  kept: z.looseObject({ host: z.string() }).optional(),
});

/** Answers the ids of the records that it has written. The agent sets a record aside that cannot be read. */
function* rewriteFiles(folder: string, from: string, to: string): Iterable<string> {
  for (const name of recordsIn(folder)) {
    const path = join(folder, name);
    const record = rewritten(textIn(path), from, to);
    if (record === undefined) continue;
    writeFileSync(`${path}.tmp`, `${JSON.stringify(record, null, 2)}\n`, {
      mode: 0o600,
      flush: true,
    });
    renameSync(`${path}.tmp`, path);
    yield name.slice(0, -'.json'.length);
  }
}

async function rewriteCopies(copies: RecordLog, from: string, to: string): Promise<string[]> {
  const written: string[] = [];
  for (const [id, text] of copies.load()) {
    const record = rewritten(text, from, to);
    if (record === undefined) continue;
    copies.put(id, JSON.stringify(record));
    written.push(id);
  }
  await copies.sync();
  copies.close();
  return written;
}

/** A record with another host, in all places; undefined for a record of none of that host. */
function rewritten(text: string, from: string, to: string): object | undefined {
  const record = parsed(text);
  const places = [record?.attachment, record?.kept].filter((place) => place?.host === from);
  if (places.length === 0) return undefined;
  for (const place of places) if (place !== undefined) place.host = to;
  return record;
}

function recordsIn(folder: string): string[] {
  try {
    return readdirSync(folder).filter((name) => name.endsWith('.json'));
  } catch {
    return [];
  }
}

/** Empty for what cannot be read. */
function textIn(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

function parsed(text: string): z.infer<typeof recordSchema> | undefined {
  try {
    return recordSchema.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}
