import { chmodSync, mkdirSync, realpathSync, type Stats, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { VoltError } from '#protocol/errors.ts';
import { LockedError, lockFile } from '#native/lock.ts';

// The runtime folder has the lock and the socket, the state folder what this host knows of the ledger. Somebody else
// who can write there can start a second agent beside the first, or leave false records for the next one.

const ROOT = 0;
const OTHERS_WRITE = 0o022;
const STICKY = 0o1000;

/** A folder that is not this process's alone. */
export class FolderError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'FolderError';
  }
}

/**
 * Makes a missing folder with exactly this mode, and checks one that is there: FolderError if somebody else owns it,
 * can write to it, or can put another folder in its place.
 */
export function ownFolder(key: string, path: string, mode: number): void {
  // What mkdir makes is subject to the umask.
  if (mkdirSync(path, { recursive: true, mode }) !== undefined) chmodSync(path, mode);
  const uid = process.geteuid?.() ?? ROOT;
  const real = realpathSync(path);
  const own = statSync(real);
  if (own.uid !== uid) refuse(key, real, `belongs to uid ${own.uid}, and this is uid ${uid}`);
  if ((own.mode & OTHERS_WRITE) !== 0) {
    refuse(key, real, `can be written to by others (mode ${modeOf(own)}): chmod go-w`);
  }
  for (let above = dirname(real), below = real; above !== below;) {
    const stat = statSync(above);
    const foreign = stat.uid !== uid && stat.uid !== ROOT;
    // Below a sticky folder such as /tmp nobody can rename folders of others.
    const open = (stat.mode & OTHERS_WRITE) !== 0 && (stat.mode & STICKY) === 0;
    const why = foreign ? `belongs to uid ${stat.uid}` : `has mode ${modeOf(stat)}`;
    if (foreign || open) refuse(key, real, `can be replaced by others: ${above} ${why}`);
    [above, below] = [dirname(above), above];
  }
}

/** Keeps agents of this host from starting until it is disposed. HOST_ALIVE: one runs. */
export function whileNoAgentRuns(runtimeDir: string): Disposable {
  try {
    return lockFile(join(runtimeDir, 'agent.lock'));
  } catch (error) {
    if (!(error instanceof LockedError)) throw error;
    throw new VoltError('HOST_ALIVE', 'the agent of this host runs: stop it first', {
      cause: error,
    });
  }
}

function refuse(key: string, path: string, reason: string): never {
  throw new FolderError(`${key}: ${path} ${reason}`);
}

const modeOf = ({ mode }: Stats): string => (mode & 0o7777).toString(8).padStart(4, '0');
