// JavaScript, because whatever Node loads before the compile cache is on is compiled anew by every run. For the first file
// of TypeScript without a cache, Node loads a compiler: that costs 55 ms, and 20 MiB for as long as the process runs.
import { lstatSync, mkdirSync } from 'node:fs';
import { enableCompileCache } from 'node:module';
import { homedir } from 'node:os';
import { join } from 'node:path';

/** Lets Node keep what it compiles, unless NODE_COMPILE_CACHE says where, or there is no folder for it. */
export function useCompileCache() {
  if (process.env['NODE_COMPILE_CACHE'] !== undefined) return;
  const folder = cacheFolder();
  if (folder !== undefined) enableCompileCache(folder);
}

/**
 * A folder that nobody but this user and root can have written to: what is in there is executed. For root
 * it does not depend on HOME, which sudo may leave with the caller's value.
 * @returns {string | undefined}
 */
function cacheFolder() {
  const uid = process.geteuid?.();
  const folder = uid === 0 ? '/var/cache/volt-network' : join(homedir(), '.cache', 'volt-network');
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const { uid: owner, mode } = lstatSync(folder);
    const writableByOthers = (mode & 0o022) !== 0;
    return owner === uid && !writableByOthers ? folder : undefined;
  } catch {
    return undefined; // a read-only disk costs time and memory, nothing else
  }
}
