import { constants as files } from 'node:fs';
import { constants } from 'node:os';
import { checked } from './errors.ts';
import { execvp, fcntl, signal, sigprocmask } from './libc.ts';

const F_GETFD = 1;
const F_SETFD = 2;
const F_GETFL = 3;
const F_SETFL = 4;
const FD_CLOEXEC = 1;
const SIG_SETMASK = 2;
// sizeof(sigset_t) in glibc; all zero is the empty set.
const EMPTY_SET = new Uint8Array(128);

/**
 * Replaces this process by a command found as execvp(3) finds it: same process id, same environment, the standard
 * streams and `keep` open, every other descriptor of Node closed. Throws KernelError with the reason (ENOENT, EACCES,
 * ...) if there is no such command or it cannot be executed. `process.execve` is no alternative: it aborts the
 * process in that case.
 *
 * What Node has changed in this process, and the command would inherit, is undone. SIGPIPE and SIGXFSZ, which Node
 * ignores, get their default back: a command that ignores SIGPIPE never ends on a closed pipe. The signal mask is
 * emptied. Standard streams are blocking again: Node makes pipes non-blocking as soon as anybody looks at
 * `process.stdout`, and `import 'node:process'` does. The limit of open files stays where Node has raised it to, the
 * hard one.
 */
export function replaceProcess(options: {
  readonly file: string;
  readonly args: readonly string[];
  readonly keep?: readonly number[];
}): never {
  const { file, args, keep = [] } = options;
  for (const fd of keep) inherit(fd);
  for (const fd of [0, 1, 2]) {
    const flags = fcntl(fd, F_GETFL, 0);
    if (flags < 0) continue; // closed, and so it stays
    checked(fcntl(fd, F_SETFL, flags & ~files.O_NONBLOCK), 'fcntl', `F_SETFL ${fd}`);
    inherit(fd);
  }
  signal(constants.signals.SIGPIPE, null);
  signal(constants.signals.SIGXFSZ, null);
  checked(sigprocmask(SIG_SETMASK, EMPTY_SET, null), 'sigprocmask', file);
  checked(execvp(file, [file, ...args, null]), 'execvp', file);
  throw new Error('execvp returned without an error');
}

function inherit(fd: number): void {
  const flags = checked(fcntl(fd, F_GETFD, 0), 'fcntl', `F_GETFD ${fd}`);
  checked(fcntl(fd, F_SETFD, flags & ~FD_CLOEXEC), 'fcntl', `F_SETFD ${fd}`);
}
