import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { stripTypeScriptTypes } from 'node:module';
import { describe, expect, test } from 'vitest';

// The house rules of docs/architecture.md: which folder may import which, and where foreign libraries live.

const ROOT = new URL('..', import.meta.url).pathname;

/** Imports of a file at run time: type-only ones are gone once the types are stripped. */
function importsOf(file: string, source: string): string[] {
  // A package that is imported only for its types leaves nothing behind.
  const code = stripTypeScriptTypes(source, { mode: 'strip' });
  const pattern =
    /(?:^|[\s;}])(?:import|export)\s+(?:[^'"()]*?\bfrom\s*)?['"]([^'"]+)['"]|\bimport\(\s*['"]([^'"]+)['"]/g;
  return [...code.matchAll(pattern)].map((match) => resolve(file, match[1] ?? match[2] ?? ''));
}

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
} as const;

const LIBRARIES: readonly [library: RegExp, homes: RegExp][] = [
  [/^koffi$/, /^native\//],
  [/^ioredis$/, /^ipam-store\//],
  [/^nats$/, /^agent\/(bus|cli\/connect)\.ts$/],
  [/^@opentelemetry\//, /^agent\/telemetry\.ts$/],
  [/^zod$/, /^(protocol\/|agent\/(config|main)\.ts$)/],
  [/^@msgpack\/msgpack$/, /^protocol\//],
];

function violations(file: string, source: string): string[] {
  const folder = Object.keys(FOLDERS).find((name) => file.startsWith(`${name}/`));
  if (folder === undefined) return [];
  const allowed: readonly string[] = FOLDERS[folder as keyof typeof FOLDERS];
  const ours = /^(agent|protocol|native|ipam-store|deploy|test)\//;
  return importsOf(file, source).flatMap((target) => {
    if (ours.test(target)) {
      const fits = allowed.some((one) => target === one || target.startsWith(`${one}/`));
      return fits ? [] : [`${file} imports ${target}`];
    }
    return LIBRARIES.filter(([library, homes]) => library.test(target) && !homes.test(file)).map(
      () => `${file} imports ${target}`,
    );
  });
}

const files = Object.keys(FOLDERS).flatMap((folder) =>
  readdirSync(join(ROOT, folder), { recursive: true })
    .map((name) => join(folder, String(name)))
    .filter((name) => name.endsWith('.ts')),
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
    ['native/x.ts', `import {\n  a,\n} from '#agent/bus.ts';`],
    ['protocol/x.ts', `import '#native/link.ts';`],
    ['protocol/x.ts', `export { a } from '#ipam-store/ledger.ts';`],
    ['ipam-store/x.ts', `const a = await import('#native/link.ts');`],
    ['agent/x.ts', `import koffi from 'koffi';`],
    ['agent/x.ts', `import { Redis } from 'ioredis';`],
    ['agent/x.ts', `import { connect, type NatsConnection } from 'nats';`],
    ['agent/x.ts', `import { z } from 'zod';`],
    ['agent/x.ts', `import '#test/support/stack.ts';`],
  ];
  test.each(planted)('%s: %s', (file, source) => {
    expect(violations(file, source)).toHaveLength(1);
  });

  test.each([
    ['native/x.ts', `import type { A } from '#protocol/errors.ts';`],
    ['native/x.ts', `import { MacAddress } from '#protocol/address.ts';`],
    ['protocol/x.ts', `import type { NatsConnection } from 'nats';`],
    ['agent/x.ts', `import { link } from '#native/link.ts';`],
  ])('and what is allowed is not: %s: %s', (file, source) => {
    expect(violations(file, source)).toEqual([]);
  });
});
