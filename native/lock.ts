import { ftruncateSync, readFileSync, writeSync } from 'node:fs';
import { Descriptor } from './descriptor.ts';
import { checked, isKernelError } from './errors.ts';
import * as libc from './libc.ts';

const O_RDWR = 2;
const O_CREAT = 0o100;
const O_CLOEXEC = 0o2000000;
const LOCK_EX = 2;
const LOCK_NB = 4;

/** Somebody holds the lock. */
export class LockedError extends Error {
  readonly code = 'LOCKED';
}

/**
 * Takes an exclusive flock(2) on a file and writes this process's id into it. The kernel releases it with
 * the descriptor, however the process ends. Throws LockedError, which names the holder where the file does.
 */
export function lockFile(path: string): Descriptor {
  const descriptor = new Descriptor(
    checked(libc.open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o644), 'open', path),
  );
  try {
    checked(libc.flock(descriptor.fd, LOCK_EX | LOCK_NB), 'flock', path);
  } catch (error) {
    descriptor.close();
    if (!isKernelError(error, 'EAGAIN', 'EWOULDBLOCK')) throw error;
    const holder = readFileSync(path, 'utf8').trim();
    const who = holder === '' ? 'another process' : `process ${holder}`;
    throw new LockedError(`${path} is locked by ${who}`, { cause: error });
  }
  ftruncateSync(descriptor.fd, 0);
  writeSync(descriptor.fd, `${process.pid}\n`, 0);
  return descriptor;
}
