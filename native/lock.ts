import {
  constants,
  fchmodSync,
  fstatSync,
  ftruncateSync,
  readFileSync,
  statSync,
  writeSync,
} from 'node:fs';
import { Descriptor } from './descriptor.ts';
import { checked, isKernelError } from './errors.ts';
import { flock, open } from './libc.ts';

const O_CLOEXEC = 0o2000000;
const LOCK_EX = 2;
const LOCK_NB = 4;
const MAX_TRIES = 10;
/** flock(2) needs only the right to open the file: whoever can read a lock file can hold the lock. */
const OWN_ALONE = 0o600;

/** Somebody else holds the lock. */
export class LockedError extends Error {
  readonly code = 'LOCKED';
  readonly path: string;
  /**
   * The process that holds it, as the kernel says; undefined if it does not say, or if the holder is in another PID
   * namespace.
   */
  readonly holderPid: number | undefined;

  constructor(path: string, holderPid: number | undefined, options: { cause: unknown }) {
    const who = holderPid === undefined ? 'another process' : `process ${nameOf(holderPid)}`;
    super(`${path} is locked by ${who}`, options);
    this.name = 'LockedError';
    this.path = path;
    this.holderPid = holderPid;
  }
}

/**
 * Takes an exclusive flock(2) on a file and writes this process's id into it. A missing file is made; only its owner
 * can open it. The kernel releases the lock with the descriptor, however the process ends. The file stays, since
 * removing it would let two processes lock two files of one name. Throws LockedError, or KernelError if the file
 * cannot be opened.
 */
export function lockFile(path: string): Descriptor {
  for (let tries = 0; tries < MAX_TRIES; tries += 1) {
    const descriptor = lockOnce(path);
    if (isStill(path, descriptor.fd)) {
      ftruncateSync(descriptor.fd, 0);
      writeSync(descriptor.fd, `${process.pid}\n`, 0);
      return descriptor;
    }
    // Somebody removed or replaced the file between open and flock: nobody else would meet our lock.
    descriptor.close();
  }
  throw new Error(`${path}: replaced ${MAX_TRIES} times while it was being locked`);
}

function lockOnce(path: string): Descriptor {
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW | O_CLOEXEC;
  const descriptor = new Descriptor(checked(open(path, flags, OWN_ALONE), 'open', path));
  try {
    // An earlier version made the file open to all. Whoever has it open already keeps what he holds.
    fchmodSync(descriptor.fd, OWN_ALONE);
    checked(flock(descriptor.fd, LOCK_EX | LOCK_NB), 'flock', path);
    return descriptor;
  } catch (cause) {
    using refused = descriptor;
    if (!isKernelError(cause, 'EAGAIN')) throw cause;
    throw new LockedError(path, holderOf(refused.fd), { cause });
  }
}

function isStill(path: string, fd: number): boolean {
  const [own, named] = [fstatSync(fd), statSync(path, { throwIfNoEntry: false })];
  return named?.ino === own.ino && named.dev === own.dev;
}

/**
 * The file names its last holder. The present one stands in /proc/locks (proc_locks(5)): `1: FLOCK  ADVISORY  WRITE
 * 4711 00:1b:1234 0 EOF`, device numbers in hexadecimal.
 */
function holderOf(fd: number): number | undefined {
  const { dev, ino } = fstatSync(fd);
  const [major, minor] = [(dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xfff00)];
  const file = `${hex(major)}:${hex(minor)}:${ino}`;
  const held = readFileSync('/proc/locks', 'utf8')
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .find(([, kind, , , , which]) => kind === 'FLOCK' && which === file);
  const pid = Number(held?.[4]);
  return pid > 0 ? pid : undefined;
}

const hex = (value: number): string => value.toString(16).padStart(2, '0');

/** `4711 (sleep)`. */
function nameOf(pid: number): string {
  try {
    return `${pid} (${readFileSync(`/proc/${pid}/comm`, 'utf8').trim()})`;
  } catch {
    return String(pid);
  }
}
