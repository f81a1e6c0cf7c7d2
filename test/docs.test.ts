import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { EXIT } from '#agent/cli/exit-codes.ts';
import { loadConfig } from '#agent/config.ts';
import { DEVICE_GROUP } from '#agent/host/networks/network-type.ts';
import packageJson from '../package.json' with { type: 'json' };

// What README.md and docs/ tell people to type, open and expect, held against what is there.

const ROOT = new URL('..', import.meta.url).pathname;
const read = (name: string): string => readFileSync(join(ROOT, name), 'utf8');

const pages = [
  'README.md',
  'CHANGELOG.md',
  'SECURITY.md',
  ...readdirSync(join(ROOT, 'docs')).map((name) => `docs/${name}`),
].filter((name) => name.endsWith('.md'));

describe.each(pages)('%s', (name) => {
  const text = read(name);

  test('links to files that are there', () => {
    const targets = [...text.matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g)].map(([, to = '']) => to);
    const missing = targets.filter((to) => !existsSync(join(ROOT, name, '..', to)));
    expect(missing).toEqual([]);
  });

  test('names npm scripts and files of deploy/ that are there', () => {
    const scripts = [...text.matchAll(/npm run (?:-s )?([a-z:]+)/g)].map(
      ([, script = '']) => script,
    );
    expect(scripts.filter((script) => !Object.hasOwn(packageJson.scripts, script))).toEqual([]);
    const files = [...text.matchAll(/(?<![\w/.])deploy\/[\w./-]*\w/g)].map(([file]) => file);
    expect(files.filter((file) => !existsSync(join(ROOT, file)))).toEqual([]);
  });
});

describe('docs/operating.md', () => {
  const page = read('docs/operating.md');
  const folder = mkdtempSync(join(tmpdir(), 'volt-docs-'));
  const empty = join(folder, 'agent.json');
  writeFileSync(empty, '{}');
  afterAll(() => {
    rmSync(folder, { recursive: true });
  });

  /** Cells of the table whose first heading is `heading`. */
  const tables = (heading: string): string[][] =>
    page
      .split('\n\n')
      .filter((part) => part.startsWith(`| ${heading} |`))
      .flatMap((part) => part.trim().split('\n').slice(2))
      .map((row) =>
        row
          .split('|')
          .slice(1, -1)
          .map((cell) => cell.trim().replaceAll('`', '')),
      );

  test('shows the defaults', () => {
    const [, json = ''] = /```json\n([^`]+)```/.exec(page) ?? [];
    const documented = JSON.parse(json) as Record<string, unknown>;
    const config = loadConfig({ file: empty, env: {} });
    const { host, nats } = config;
    expect(nats.inboxPrefix).toBe(`_INBOX.agent-${host}`);
    const withHost = { ...nats, inboxPrefix: '_INBOX.agent-<host>' };
    expect({ ...documented, host, hostGiven: false }).toEqual({ ...config, nats: withHost });
  });

  const settings = tables('key').slice(1);

  const valueOf = (key: string): string => {
    if (/Seconds$|Bytes$/.test(key)) return '7000000';
    return /Dir$|File$/.test(key) ? '/seven' : 'seven';
  };

  test.each(settings)('%s is set by %s', (key, variable) => {
    const values: Readonly<Record<string, string>> = {
      host: 'h7',
      'nats.url': 'nats://10.0.0.7:4222',
      'nats.inboxPrefix': '_INBOX.seven',
      'redis.url': 'redis://10.0.0.7:6379/0',
      onReboot: 'release',
      logLevel: 'debug',
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

  test('knows every variable and every flag', () => {
    const known = new Set(read('agent/config.ts').match(/\bVOLT_NET_[A-Z_]+(?=')/g));
    known.delete('VOLT_NET_');
    expect(new Set(settings.map(([, variable]) => variable))).toEqual(known);
    const help = execFileSync(join(ROOT, 'deploy/bin/volt-network-agent'), ['--help'], {
      encoding: 'utf8',
    });
    const flags = [...help.matchAll(/ (--[a-z-]+) </g)].map(([, flag]) => flag);
    const documented = tables('key').map(([, , flag]) => flag);
    expect(new Set(documented.filter((flag) => flag !== ''))).toEqual(new Set(flags));
  });

  test('knows the exit codes of voltnet', () => {
    const codes = [
      ...page.slice(page.indexOf('| code | of `voltnet` |')).matchAll(/^\| (`\d.*?) \|/gm),
    ]
      .flatMap(([, cell = '']) => cell.match(/\d+/g) ?? [])
      .map(Number);
    expect(codes).toEqual(Object.values(EXIT));
  });

  test('names the link group of our devices', () => {
    expect(page).toContain(`ip link show group ${DEVICE_GROUP}`);
  });
});
