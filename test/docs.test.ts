import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { loadConfig, OVERRIDES } from '#agent/config.ts';
import packageJson from '../package.json' with { type: 'json' };
import { DEVICE_GROUP } from '#agent/host/ownership.ts';

// What README.md and docs/ tell people to type, open and expect, held against what is there.

const ROOT = new URL('..', import.meta.url).pathname;
const read = (name: string): string => readFileSync(join(ROOT, name), 'utf8');

const pages = [
  'README.md',
  'CHANGELOG.md',
  'CONTRIBUTING.md',
  'SECURITY.md',
  'test/README.md',
  ...readdirSync(join(ROOT, 'docs'), { recursive: true }).map((name) => `docs/${String(name)}`),
].filter((name) => name.endsWith('.md'));

/** A file as pages name it, also without its extension; not a folder of a host (`/etc/nats/…`), nor an example. */
const NAMED = /(?<![\w/.#-])(?:agent|deploy|docs|ipam-store|native|protocol|test)\/[\w./-]*\w/g;
const NO_FILES = new Set(['agent/host/networks/toy.ts', 'native/netlink']);

describe.each(pages)('%s', (name) => {
  const text = read(name);

  test('links to files that are there', () => {
    const targets = [...text.matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g)].map(([, to = '']) => to);
    const missing = targets.filter((to) => !existsSync(join(ROOT, name, '..', to)));
    expect(missing).toEqual([]);
  });

  test('names npm scripts and files that are there', () => {
    const scripts = [...text.matchAll(/npm run (?:-s )?([a-z:]+)/g)].map(
      ([, script = '']) => script,
    );
    expect(scripts.filter((script) => !Object.hasOwn(packageJson.scripts, script))).toEqual([]);
    const files = [...text.matchAll(NAMED)]
      .map(([file]) => file)
      .filter((file) => !NO_FILES.has(file));
    const there = (file: string): boolean =>
      ['', '.ts', '.md'].some((ending) => existsSync(join(ROOT, `${file}${ending}`)));
    expect(files.filter((file) => !there(file))).toEqual([]);
  });
});

test('the rooms of docs/architecture.md have the files that it names, and none is left out', () => {
  const page = read('docs/architecture.md');
  const rows = page
    .slice(page.indexOf('\n| room |'))
    .matchAll(/^\| `([a-z/]+)\/`[^|]*\|[^|]*\| (`[^|]*) \|$/gm);
  const rooms = new Map(
    [...rows].map(([, room = '', files = '']) => [room.replace(/^agent$/, '.'), names(files)]),
  );
  const missing = [...rooms].flatMap(([room, files]) =>
    files
      .map((file) => join('agent', room, file))
      .filter((file) => !existsSync(join(ROOT, file)) && !existsSync(join(ROOT, `${file}.ts`))),
  );
  expect(missing).toEqual([]);
  const folders = readdirSync(join(ROOT, 'agent'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.ts'))
    .map((entry) => relative(join(ROOT, 'agent'), entry.parentPath) || '.');
  // A folder that has no row of its own belongs to the room that it lies in.
  const known = (folder: string): boolean =>
    rooms.has(folder) || ['host', 'cli/commands'].includes(folder);
  expect(new Set(folders.filter((folder) => !known(folder)))).toEqual(new Set());
});

const names = (cell: string): string[] =>
  [...cell.matchAll(/`([^`]+)`/g)].map(([, name = '']) => name);

describe('settings', () => {
  const page = read('docs/operating.md');
  const folder = mkdtempSync(join(tmpdir(), 'volt-docs-'));
  const empty = join(folder, 'agent.json');
  writeFileSync(empty, '{}');
  afterAll(() => {
    rmSync(folder, { recursive: true });
  });

  const valueOf = (key: string): string => {
    if (/Seconds$|Bytes$/.test(key)) return '7000000';
    return /Dir$|File$/.test(key) ? '/seven' : 'seven';
  };

  test.each(OVERRIDES)('$key is set by $variable', ({ key, variable }) => {
    const values: Readonly<Record<string, string>> = {
      host: 'h7',
      'nats.url': 'nats://10.0.0.7:4222',
      'nats.inboxPrefix': '_INBOX.seven',
      'redis.url': 'redis://10.0.0.7:6379/0',
      onReboot: 'release',
      logLevel: 'debug',
      logFormat: 'text',
      'metrics.listen': '127.0.0.1:7',
      'nats.streams.replicas': '3',
      'nats.streams.storage': 'memory',
    };
    const value = values[key] ?? valueOf(key);
    // Two that are nothing without each other.
    const other = variable === 'VOLT_NET_NATS_USERNAME' ? 'PASSWORD_FILE' : 'USERNAME';
    const beside = /^nats\.(username|passwordFile)$/.test(key)
      ? { [`VOLT_NET_NATS_${other}`]: '/other' }
      : {};
    const config: unknown = loadConfig({ file: empty, env: { ...beside, [variable]: value } });
    const found = key
      .split('.')
      .reduce<unknown>((section, name) => (section as Record<string, unknown>)[name], config);
    expect(String(found)).toBe(value);
  });

  test.each(OVERRIDES.flatMap((one) => ('flag' in one ? [one] : [])))(
    '$key is set by $flag',
    ({ key, flag }) => {
      const known: Readonly<Record<string, string>> = {
        '--log-level': 'debug',
        '--log-format': 'text',
      };
      const value = known[flag] ?? valueOf(key);
      const given = ['nats.url', 'redis.url'].includes(key) ? `${key.split('.')[0]}://h:7` : value;
      const args = ['--config', empty, '--check-config', flag, given];
      const shown = execFileSync(join(ROOT, 'deploy/bin/volt-network-agent'), args, {
        encoding: 'utf8',
      });
      expect(shown).toContain(`": "${given}"`);
    },
  );

  test('names the link group of our devices', () => {
    expect(page).toContain(`ip link show group ${DEVICE_GROUP}`);
  });
});
