import { isKernelError } from '#native/errors.ts';
import { readSysctl } from '#native/sysctl.ts';

/** A device, or a kernel, may have no IPv6 at all: then there is no such setting. */
export function readIfThere(path: readonly string[]): string | undefined {
  try {
    return readSysctl(path);
  } catch (error) {
    if (isKernelError(error, 'ENOENT')) return undefined;
    throw error;
  }
}
