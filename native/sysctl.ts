import { readFileSync, writeFileSync } from 'node:fs';
import { KernelError } from './errors.ts';
import { traced } from './trace.ts';

// A setting is a path of components, so that a device name with a dot is one component. What lies below
// `net` belongs to the network namespace of the calling thread, so calls are synchronous: the thread pool
// never enters another.
const fileOf = (path: readonly string[]): string => `/proc/sys/${path.join('/')}`;

/** `readSysctl(['net', 'ipv4', 'ip_forward'])` → `"0"`. KernelError ENOENT when there is none. */
export function readSysctl(path: readonly string[]): string {
  return asKernelError('read', path, () => readFileSync(fileOf(path), 'utf8').trim());
}

/** Sets it for the running kernel. KernelError: ENOENT, EACCES, EINVAL. */
export function writeSysctl(path: readonly string[], value: string): void {
  traced('sysctl', `${path.join('.')}=${value}`, () => {
    asKernelError('write', path, () => writeFileSync(fileOf(path), value));
  });
}

function asKernelError<T>(verb: string, path: readonly string[], work: () => T): T {
  try {
    return work();
  } catch (cause) {
    const negative = cause instanceof Error && 'errno' in cause ? Number(cause.errno) : Number.NaN;
    if (Number.isNaN(negative)) throw cause;
    throw new KernelError({
      operation: `sysctl ${verb}`,
      subject: path.join('.'),
      errno: -negative,
      cause,
    });
  }
}
