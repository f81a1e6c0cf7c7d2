import { constants } from 'node:os';
import { checked } from './errors.ts';
import { execvp, fcntl, signal, sigprocmask } from './libc.ts';

const F_GETFD = 1;
const F_SETFD = 2;
const FD_CLOEXEC = 1;
const SIG_SETMASK = 2;
// sizeof(sigset_t) in glibc; all zero is the empty set.
const EMPTY_SET = new Uint8Array(128);
const STANDARD_STREAMS = [0, 1, 2];

/**
 * Replaces this process by a command found as execvp(3) finds it: same process id, same environment, the
 * standard streams and `keep` open, every other descriptor of Node closed. Throws KernelError with the
 * reason (ENOENT, EACCES, ...) when there is no such command or it cannot be executed. `process.execve`
 * is no alternative: it aborts the process there.
 *
 * Node ignores SIGPIPE and SIGXFSZ, and what is ignored stays ignored in the command, which would then
 * never end on a closed pipe; both get their default back, and the signal mask is emptied. The limit of
 * open files stays where Node raised it to: the hard one.
 */
export function replaceProcess(options: {
  readonly file: string;
  readonly args: readonly string[];
  readonly keep?: readonly number[];
}): never {
  const { file, args, keep = [] } = options;
  for (const fd of [...STANDARD_STREAMS, ...keep]) inherit(fd);
  signal(constants.signals.SIGPIPE, null);
  signal(constants.signals.SIGXFSZ, null);
  checked(sigprocmask(SIG_SETMASK, EMPTY_SET, null), 'sigprocmask', file);
  checked(execvp(file, [file, ...args, null]), 'execvp', file);
  throw new Error('execvp returned without an error');
}

function inherit(fd: number): void {
  const flags = fcntl(fd, F_GETFD, 0);
  // A standard stream may be closed; a descriptor to keep has been claimed a moment ago.
  if (flags < 0 && STANDARD_STREAMS.includes(fd)) return;
  checked(flags, 'fcntl', `F_GETFD ${fd}`);
  checked(fcntl(fd, F_SETFD, flags & ~FD_CLOEXEC), 'fcntl', `F_SETFD ${fd}`);
}
