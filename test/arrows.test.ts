import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { stripTypeScriptTypes } from 'node:module';
import { describe, expect, test } from 'vitest';

// The house rules of docs/architecture.md: which folder may import which, and where foreign libraries live.

const ROOT = new URL('..', import.meta.url).pathname;

const IMPORT =
  /(?:^|[\s;}])(?:import|export)\s+(?:[^'"()]*?\bfrom\s*)?['"]([^'"]+)['"]|\bimport\(\s*['"]([^'"]+)['"]/g;

/** What a file names in its imports, also for types alone. */
const importsOf = (file: string, source: string): string[] =>
  [...source.matchAll(IMPORT)].map((match) => resolve(file, match[1] ?? match[2] ?? ''));

/** What is left of them at run time: an import for types alone is gone once the types are. */
const runTimeImportsOf = (file: string, source: string): string[] =>
  importsOf(file, stripTypeScriptTypes(source, { mode: 'strip' }));

function resolve(file: string, specifier: string): string {
  if (specifier.startsWith('#')) return specifier.slice(1);
  if (specifier.startsWith('.')) return relative(ROOT, join(ROOT, dirname(file), specifier));
  return specifier;
}

const FOLDERS = {
  protocol: ['protocol'],
  native: ['native', 'protocol/address.ts'],
  'ipam-store': ['ipam-store', 'protocol'],
  agent: ['agent', 'native', 'ipam-store', 'protocol', 'package.json'],
  deploy: ['deploy', 'native', 'protocol'],
  docs: ['docs', 'agent', 'protocol', 'package.json'],
} as const;

const LIBRARIES: readonly [library: RegExp, homes: RegExp][] = [
  [/^koffi$/, /^native\/(libc|nftables|poll)\.ts$/],
  [/^ioredis$/, /^ipam-store\/(client|sentinels|errors)\.ts$/],
  [/^nats$/, /^(agent\/(bus\/[a-z-]+|cli\/connect)|docs\/examples\/.*)\.ts$/],
  [/^@opentelemetry\//, /^agent\/telemetry\/[a-z-]+\.ts$/],
  [
    /^zod$/,
    /^(protocol\/|docs\/generator\/schemas|agent\/(config|main|fleet\/(cordon|identity|rename|ledger-watermark)|host\/bridges\/applied)\.ts$)/,
  ],
  [/^@msgpack\/msgpack$/, /^protocol\/envelope\.ts$/],
  [/^ipaddr\.js$/, /^protocol\/address\.ts$/],
  [/^pino$/, /^agent\/log\.ts$/],
  [/^commander$/, /^(agent\/(main\.ts$|cli\/)|docs\/generator\/pages)/],
];

const OURS = /^(agent|protocol|native|ipam-store|deploy|test)\//;

function violations(file: string, source: string): string[] {
  const folder = Object.keys(FOLDERS).find((name) => file.startsWith(`${name}/`));
  if (folder === undefined) return [];
  const allowed: readonly string[] = FOLDERS[folder as keyof typeof FOLDERS];
  const fits = (target: string): boolean =>
    allowed.some((one) => target === one || target.startsWith(`${one}/`));
  const away = (target: string): boolean =>
    LIBRARIES.some(([library, homes]) => library.test(target) && !homes.test(file));
  // Types go the way of the arrows too; those of a library may be named anywhere.
  const own = importsOf(file, source).filter((target) => OURS.test(target) && !fits(target));
  const foreign = runTimeImportsOf(file, source).filter(away);
  return [...own, ...foreign].map((target) => `${file} imports ${target}`);
}

const files = Object.keys(FOLDERS).flatMap((folder) =>
  readdirSync(join(ROOT, folder), { recursive: true })
    .map((name) => join(folder, String(name)))
    .filter((name) => /\.[jt]s$/.test(name)),
);

test('every import goes the way the arrows do', () => {
  expect(files.length).toBeGreaterThan(30);
  expect(files.flatMap((file) => violations(file, readFileSync(join(ROOT, file), 'utf8')))).toEqual(
    [],
  );
});

describe('a planted import is found', () => {
  const planted: [file: string, source: string][] = [
    ['native/x.ts', `import { a } from '#protocol/errors.ts';`],
    ['native/x.ts', `import { a } from '../protocol/errors.ts';`],
    ['native/x.ts', `import {\n  a,\n} from '#agent/bus/bus.ts';`],
    ['native/x.ts', `import type { A } from '#protocol/errors.ts';`],
    ['native/x.ts', `import { type A } from '#agent/bus/bus.ts';`],
    ['native/x.ts', `import koffi from 'koffi';`],
    ['protocol/x.ts', `import '#native/link.ts';`],
    ['protocol/x.ts', `export { a } from '#ipam-store/ledger.ts';`],
    ['ipam-store/x.ts', `const a = await import('#native/link.ts');`],
    ['agent/x.ts', `import koffi from 'koffi';`],
    ['agent/x.ts', `import { Redis } from 'ioredis';`],
    ['agent/x.ts', `import { connect, type NatsConnection } from 'nats';`],
    ['agent/x.ts', `import { z } from 'zod';`],
    ['agent/x.ts', `import { trace } from '@opentelemetry/api';`],
    ['agent/x.ts', `import '#test/support/stack.ts';`],
    ['deploy/x.ts', `import { loadConfig } from '../agent/config.ts';`],
  ];
  test.each(planted)('%s: %s', (file, source) => {
    expect(violations(file, source)).toHaveLength(1);
  });

  test.each([
    ['native/libc.ts', `import koffi from 'koffi';`],
    ['native/x.ts', `import type { IpAddress } from '#protocol/address.ts';`],
    ['native/x.ts', `import { MacAddress } from '#protocol/address.ts';`],
    ['protocol/x.ts', `import type { NatsConnection } from 'nats';`],
    ['agent/x.ts', `import { link } from '#native/link.ts';`],
  ])('and what is allowed is not: %s: %s', (file, source) => {
    expect(violations(file, source)).toEqual([]);
  });
});
