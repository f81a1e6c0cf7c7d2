import { randomUUID } from 'node:crypto';
import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import type { Config } from '../config.ts';
import { createLog } from '../log.ts';
import { openVmRecords, vmRecordsIn } from '../storage/journal.ts';

const VERSION = 1;
const IDENTITY_FILE = 'identity';
const HOST_FILE = 'host';

const identitySchema = z.object({
  version: z.literal(VERSION),
  agentId: z.string(),
  machineId: z.string(),
  host: z.string(),
  yieldsTo: z.string().optional(),
  renamingTo: z.string().optional(),
});

/** Whose a state folder is. */
export interface Identity {
  /** Made at the first start. It tells two machines of one image apart, unless it is in the image. */
  readonly agentId: string;
  /** /etc/machine-id as it was then. */
  readonly machineId: string;
  /** The host id under which leases and records are kept. */
  readonly host: string;
  /** The machine that this agent has to yield to, as the last HOST_CONFLICT named it, for as long as it is refused. */
  readonly yieldsTo?: string | undefined;
  /** The new host id of a `voltnet host rename` that has begun and not ended. */
  readonly renamingTo?: string | undefined;
}

/** The state folder belongs to another machine or another host. The message says what an operator has to do. */
export class IdentityError extends Error {
  override readonly name = 'IdentityError';
}

/** Undefined if the folder has no identity, or is not there. IdentityError if the identity cannot be read. */
export function readIdentity(stateDir: string): Identity | undefined {
  const path = join(stateDir, IDENTITY_FILE);
  try {
    const { version: _, ...identity } = identitySchema.parse(
      JSON.parse(readFileSync(path, 'utf8')),
    );
    return identity;
  } catch (cause) {
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return undefined;
    const reason = cause instanceof z.ZodError ? z.prettifyError(cause) : String(cause);
    throw new IdentityError(
      `${path} cannot be read, and says whose the records beside it are (${reason}): put it back from a copy, or remove it`,
      { cause },
    );
  }
}

/** Survives a crash of the machine: written, synced, renamed. */
export function writeIdentity(stateDir: string, identity: Identity): void {
  const path = join(stateDir, IDENTITY_FILE);
  const text = `${JSON.stringify({ version: VERSION, ...identity })}\n`;
  writeFileSync(`${path}.tmp`, text, { mode: 0o600, flush: true });
  renameSync(`${path}.tmp`, path);
  syncFolder(stateDir);
}

function syncFolder(path: string): void {
  const fd = openSync(path, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/**
 * The configuration, with the host id that this machine is recorded under in place of a default that has changed with
 * the machine's name. IdentityError if `host` was given and is another: leases and records are renamed only on
 * purpose.
 */
export function asRecorded(config: Config): Config {
  const recorded = readIdentity(config.stateDir);
  if (recorded === undefined) return config;
  const { host, renamingTo } = recorded;
  if (renamingTo !== undefined) {
    throw new IdentityError(
      `the renaming of host ${host} to ${renamingTo} was cut short: run "voltnet host rename ${renamingTo}" again`,
    );
  }
  if (host === config.host) return config;
  if (config.hostGiven) {
    throw new IdentityError(
      `host: "${config.host}" is configured, and ${config.stateDir} is of host ${host}: to rename the host with all that ` +
        `it holds, run "voltnet host rename ${config.host}"; otherwise configure "${host}", or no host`,
    );
  }
  return withHost(config, host);
}

function withHost(config: Config, host: string): Config {
  const { nats } = config;
  const isDefault = nats.inboxPrefix === `_INBOX.agent-${config.host}`;
  const inboxPrefix = isDefault ? `_INBOX.agent-${host}` : nats.inboxPrefix;
  return { ...config, host, nats: { ...nats, inboxPrefix } };
}

/**
 * Whose the state folder is, for an agent that holds the lock; made if it is missing. IdentityError if the folder is
 * of another machine, or has records of another host; then nothing was made or changed.
 */
export function keepIdentity(config: Config, { machineId }: { machineId: string }): Identity {
  const { host, runtimeDir, stateDir } = config;
  const recorded = readIdentity(stateDir);
  if (recorded !== undefined) {
    if (recorded.machineId !== machineId) refuseCopy(stateDir, recorded, machineId);
    noteHost(runtimeDir, host);
    return recorded;
  }
  for (const folder of [runtimeDir, stateDir]) refuseRecords(join(folder, 'attachments'), host);
  refuseCopies(stateDir, host);
  const made = { agentId: randomUUID(), machineId, host };
  writeIdentity(stateDir, made);
  noteHost(runtimeDir, host);
  return made;
}

function refuseCopy(stateDir: string, { machineId, host }: Identity, own: string): never {
  throw new IdentityError(
    `${stateDir} is of host ${host} on another machine: its /etc/machine-id was ${machineId}, and is ${own} here. If the ` +
      `folder was copied, empty it, ${stateDir}/${IDENTITY_FILE} included. If this is the same machine, write ` +
      `"${machineId}" into /etc/machine-id again, or run "voltnet host rename ${host}"`,
  );
}

/** Agents before 1.7 have left no identity: their records alone say whose the folder is. */
function refuseRecords(folder: string, host: string): void {
  for (const name of namesIn(folder)) {
    refuseRecord(join(folder, name), textIn(join(folder, name)), host);
  }
}

function refuseCopies(stateDir: string, host: string): void {
  if (!existsSync(vmRecordsIn(stateDir))) return;
  const copies = openVmRecords(stateDir, createLog('silent', host));
  for (const [id, text] of copies.load()) refuseRecord(`${stateDir}: ${id}`, text, host);
}

function refuseRecord(what: string, text: string, host: string): void {
  const other = hostOfRecord(text);
  if (other === undefined || other === host) return;
  throw new IdentityError(
    `${what} is a record of host ${other}, and this is host ${host}: where the host's name has changed, ` +
      `configure "host": "${other}"; where the folders were copied from another machine, empty them`,
  );
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).filter((name) => name.endsWith('.json'));
  } catch {
    return [];
  }
}

function textIn(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

const recordSchema = z.object({ attachment: z.object({ host: z.string() }) });

/** Undefined for a record of an unfinished attach, and for a file that is no record. */
function hostOfRecord(text: string): string | undefined {
  try {
    return recordSchema.safeParse(JSON.parse(text)).data?.attachment.host;
  } catch {
    return undefined;
  }
}

/** For the command line, whose users may not be able to read the state folder. */
export function noteHost(runtimeDir: string, host: string): void {
  writeFileSync(join(runtimeDir, HOST_FILE), `${host}\n`, { mode: 0o644 });
}
