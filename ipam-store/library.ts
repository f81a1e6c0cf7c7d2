import { readFileSync } from 'node:fs';

/** The major version is part of every name: functions of the next major stand beside these. */
export const LIBRARY = 'volt1';
/** Every major from the next on has this function: where it is, this version must not touch the ledger. */
export const NEXT_MAJOR = 'volt2_version';

// In the order of use: a file sees the locals of those before it.
const FILES = ['common', 'pool', 'networks', 'leases', 'hosts'];

/** The function library as FUNCTION LOAD takes it. */
export const librarySource = (): string => {
  const parts = FILES.map((name) =>
    readFileSync(new URL(`./functions/${name}.lua`, import.meta.url), 'utf8'),
  );
  return `#!lua name=${LIBRARY}\n${parts.join('\n')}`;
};

/** `1.0`, as the loaded library answers it. */
export const libraryVersion = (source: string): string =>
  /^local VERSION = '(\d+\.\d+)'$/m.exec(source)?.[1] ?? '0.0';

/** Negative when `a` is older. */
export function compareVersions(a: string, b: string): number {
  const [majorA = 0, minorA = 0] = a.split('.').map(Number);
  const [majorB = 0, minorB = 0] = b.split('.').map(Number);
  return majorA - majorB || minorA - minorB;
}
