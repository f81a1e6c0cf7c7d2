import { readFileSync, writeFileSync } from 'node:fs';
import { KernelError } from './errors.ts';
import { traced } from './trace.ts';

// A setting is a path of components, so that a device name with a dot is one component. Settings below `net` belong
// to the network namespace of the calling thread. So calls are synchronous: the thread pool never enters another
// namespace.

const SEPARATOR_OR_END = /[/\0]/;

/**
 * `readSysctl(['net', 'ipv4', 'ip_forward'])` → `"0"`. KernelError: ENOENT if there is no such setting, EACCES.
 * TypeError for an impossible component (empty, `..`, with a slash).
 */
export function readSysctl(path: readonly string[]): string {
  return asKernelError('read', path, (file) => readFileSync(file, 'utf8').trim());
}

/** Sets it for the running kernel. KernelError: ENOENT, EACCES, EINVAL for a value that the kernel refuses. */
export function writeSysctl(path: readonly string[], value: string): void {
  traced('sysctl', `${path.join('/')}=${value}`, () => {
    // Without O_CREAT: it would make EACCES of a missing setting.
    asKernelError('write', path, (file) => writeFileSync(file, value, { flag: 'r+' }));
  });
}

function asKernelError<T>(verb: string, path: readonly string[], work: (file: string) => T): T {
  try {
    return work(fileOf(path));
  } catch (cause) {
    const errno = cause instanceof Error && 'errno' in cause ? cause.errno : undefined;
    if (typeof errno !== 'number') throw cause;
    const subject = path.join('/');
    // libuv's numbers are negative.
    throw new KernelError({ operation: `sysctl ${verb}`, subject, errno: -errno, cause });
  }
}

function fileOf(path: readonly string[]): string {
  for (const part of path) {
    if (part === '' || part === '.' || part === '..' || SEPARATOR_OR_END.test(part)) {
      throw new TypeError(`sysctl: "${part}" is no component of a path`);
    }
  }
  return `/proc/sys/${path.join('/')}`;
}
