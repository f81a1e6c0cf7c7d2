import { constants, fstatSync, ftruncateSync, readSync, statSync, writeSync } from 'node:fs';
import { Descriptor } from './descriptor.ts';
import { checked, isKernelError } from './errors.ts';
import { flock, open } from './libc.ts';

const O_CLOEXEC = 0o2000000;
const LOCK_EX = 2;
const LOCK_NB = 4;
const PID_BYTES = 16;
const MAX_TRIES = 10;

/** Somebody else holds the lock. */
export class LockedError extends Error {
  readonly code = 'LOCKED';
  readonly path: string;
  /** Who wrote its process id into the file last; undefined where nobody did. */
  readonly holderPid: number | undefined;

  constructor(path: string, holderPid: number | undefined, options: { cause: unknown }) {
    const who = holderPid === undefined ? 'another process' : `process ${holderPid}`;
    super(`${path} is locked by ${who}`, options);
    this.name = 'LockedError';
    this.path = path;
    this.holderPid = holderPid;
  }
}

/**
 * Takes an exclusive flock(2) on a file, made if need be, and writes this process's id into it. The kernel
 * releases it with the descriptor, however the process ends; the file stays, since removing it would let two
 * processes lock two files of one name. Throws LockedError, or KernelError when the file cannot be opened.
 */
export function lockFile(path: string): Descriptor {
  for (let tries = 0; tries < MAX_TRIES; tries += 1) {
    const descriptor = lockOnce(path);
    if (isStill(path, descriptor.fd)) {
      ftruncateSync(descriptor.fd, 0);
      writeSync(descriptor.fd, `${process.pid}\n`, 0);
      return descriptor;
    }
    // Somebody removed or replaced the file between open and flock: ours is a lock that nobody meets.
    descriptor.close();
  }
  throw new Error(`${path}: replaced ${MAX_TRIES} times while it was being locked`);
}

function lockOnce(path: string): Descriptor {
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW | O_CLOEXEC;
  const descriptor = new Descriptor(checked(open(path, flags, 0o644), 'open', path));
  try {
    checked(flock(descriptor.fd, LOCK_EX | LOCK_NB), 'flock', path);
    return descriptor;
  } catch (cause) {
    using refused = descriptor;
    if (!isKernelError(cause, 'EAGAIN')) throw cause;
    throw new LockedError(path, holderIn(refused.fd), { cause });
  }
}

function isStill(path: string, fd: number): boolean {
  const [own, named] = [fstatSync(fd), statSync(path, { throwIfNoEntry: false })];
  return named?.ino === own.ino && named.dev === own.dev;
}

function holderIn(fd: number): number | undefined {
  const bytes = Buffer.alloc(PID_BYTES);
  const text = bytes.toString('latin1', 0, readSync(fd, bytes, 0, PID_BYTES, 0));
  return /^[1-9]\d*\n$/.test(text) ? Number(text) : undefined;
}
