import { isKernelError } from '#native/errors.ts';
import { readSysctl } from '#native/sysctl.ts';

/** Undefined if there is no such setting: a device, or the whole kernel, may have no IPv6. */
export function readIfThere(path: readonly string[]): string | undefined {
  try {
    return readSysctl(path);
  } catch (error) {
    if (isKernelError(error, 'ENOENT')) return undefined;
    throw error;
  }
}
