import { readFileSync } from 'node:fs';
import type { Redis } from 'ioredis';
import { VoltError } from '#protocol/errors.ts';
import { isFinal, isForbidden, isMissingFunction, messageOf } from './errors.ts';
import { Fields } from './fields.ts';
import { Unfit } from './server.ts';

/** The major version is part of every name: functions of the next major stand beside these. */
export const LIBRARY = 'volt1';
/** Every major from the next on has this function: where it is, this version must not touch the ledger. */
const NEXT_MAJOR = 'volt2_version';

// In this order: a file sees the locals of the files before it.
const FILES = [
  'common',
  'clock',
  'arming',
  'server',
  'ranges',
  'pool',
  'presence',
  'placing',
  'rules',
  'leaving',
  'revisions',
  'edits',
  'log',
  'unfinished',
  'networks',
  'usage',
  'sources',
  'leases',
  'restore',
  'reassert',
  'follow',
  'roster',
  'identity',
  'recovery',
  'sweep',
  'unclaimed',
  'heartbeat',
  'hosts',
  'rename',
  'audit',
  'audit-networks',
  'audit-definitions',
  'repair',
  'repair-networks',
];

let built: string | undefined;

/** The function library as FUNCTION LOAD takes it. Put together once, and not with each connect. */
export const librarySource = (): string => (built ??= putTogether());

function putTogether(): string {
  // Not `import.meta.url`: in a package this module is part of a bundle, which lies elsewhere.
  const here = import.meta.resolve('#ipam-store/library.ts');
  const parts = FILES.map((name) => readFileSync(new URL(`./functions/${name}.lua`, here), 'utf8'));
  const words = parts.map((part) => new Set(codeOf(part).match(/\w+/g)));
  // Only later files can name a local.
  const enclosed = parts.map((part, n) =>
    enclose(part, (name) => words.slice(n + 1).some((some) => some.has(name))),
  );
  return `#!lua name=${LIBRARY}\n${enclosed.join('\n')}`;
}

/** The code of a file without comments, texts and names of fields, none of which name a local. */
const codeOf = (part: string): string =>
  part.replaceAll(/'[^'\n]*'|--.*$/gm, ' ').replaceAll(/(?<!\.)\.\w+/g, ' ');

const TOP_LEVEL = /^local (?:function )?(\w+)/gm;

/**
 * Puts a file of functions into a block of its own, since Lua allows two hundred locals at a time. Locals that later files
 * name are declared outside the block.
 */
function enclose(part: string, isNamedLater: (name: string) => boolean): string {
  const own = [...part.matchAll(TOP_LEVEL)].map(([, name = '']) => name);
  const shared = own.filter(isNamedLater);
  if (shared.length === 0) return `do\n${part}end\n`;
  const body = part.replaceAll(TOP_LEVEL, (line, name: string) =>
    isNamedLater(name) ? line.replace('local ', '') : line,
  );
  return `local ${shared.join(', ')} do\n${body}end\n`;
}

/** `1.0`, as the loaded library answers it. */
export const libraryVersion = (source: string): string =>
  /^local VERSION = '(\d+\.\d+)'$/m.exec(source)?.[1] ?? '0.0';

/** Negative when `a` is older. */
export function compareVersions(a: string, b: string): number {
  const [majorA = 0, minorA = 0] = a.split('.').map(Number);
  const [majorB = 0, minorB = 0] = b.split('.').map(Number);
  return majorA - majorB || minorA - minorB;
}

export interface Installed {
  /** The version that was there, if any. */
  readonly before: string | null;
  /** The version that is there now: this one, or a newer one of the same major. */
  readonly after: string;
}

/**
 * Loads the library where it is missing or older; a newer one of this major is left alone. STORE_VERSION where
 * the next major is, Unfit where the library is needed and the user may not load it.
 */
export async function installLibrary(server: Redis): Promise<Installed> {
  const library = librarySource();
  const wanted = libraryVersion(library);
  const next = await versionOf(server, NEXT_MAJOR);
  if (next !== null) {
    const message = `the ledger is of version ${next}, which needs a newer agent than this, of ${wanted}`;
    throw new VoltError('STORE_VERSION', message, { details: { version: next, wanted } });
  }
  const before = await versionOf(server, `${LIBRARY}_version`);
  if (before !== null && compareVersions(before, wanted) >= 0) return { before, after: before };
  try {
    // Without REPLACE where nothing was: of two that load at once, the older must not be the later.
    await (before === null
      ? server.function('LOAD', library)
      : server.function('LOAD', 'REPLACE', library));
  } catch (error) {
    if (!isFinal(error)) throw error;
    const now = await versionOf(server, `${LIBRARY}_version`);
    if (now !== null && compareVersions(now, wanted) >= 0) return { before, after: now };
    const have =
      now === null ? 'the function library is missing' : `the function library is ${now}`;
    throw new Unfit(
      `${have}, ${wanted} is needed, and loading it failed (${messageOf(error)}): ` +
        'run "voltnet ledger install" as a user who may',
      error,
    );
  }
  return { before, after: wanted };
}

/**
 * Why the user has no part in the change logs of networks; undefined where it has, or where the server does not say:
 * nothing but the logs depends on it.
 */
export async function logProblem(server: Redis, root: string): Promise<string | undefined> {
  const name = `${LIBRARY}_logs`;
  const text = await server.fcall(name, 1, root).catch(() => '{}');
  return Fields.parse(String(text), name).optionalText('unlogged');
}

async function versionOf(server: Redis, name: string): Promise<string | null> {
  try {
    return String(await server.fcall_ro(name, 0));
  } catch (error) {
    if (isMissingFunction(error)) return null;
    if (!isForbidden(error)) throw error;
    throw new Unfit(`the user may not call functions: ${messageOf(error)}`, error);
  }
}
