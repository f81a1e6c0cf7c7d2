import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterAll, describe, expect, test } from 'vitest';
import { jsonText } from '#agent/cli/dashboard/json-text.ts';
import { Kept } from '#agent/cli/dashboard/kept.ts';
import { Latency } from '#agent/cli/dashboard/latency.ts';
import { namesLoopback, parseListen, urlOf } from '#agent/cli/dashboard/listen.ts';
import { toldEvent } from '#agent/cli/dashboard/told-event.ts';
import { Traces } from '#agent/cli/dashboard/traces.ts';
import type { VoltEvent } from '#protocol/client.ts';

describe('--listen', () => {
  test.each([
    ['127.0.0.1:8180', '127.0.0.1', true],
    ['127.9.9.9:1', '127.9.9.9', true],
    ['localhost:8180', '127.0.0.1', true],
    ['[::1]:8180', '::1', true],
    ['0.0.0.0:8180', '0.0.0.0', false],
    ['[::]:8180', '::', false],
    ['10.0.0.7:0', '10.0.0.7', false],
    ['[::ffff:10.0.0.7]:80', '::ffff:10.0.0.7', false],
  ])('%s', (text, address, isLoopback) => {
    expect(parseListen(text)).toMatchObject({ address, isLoopback });
  });

  test.each([
    '',
    '8180',
    '127.0.0.1',
    '127.0.0.1:',
    '127.0.0.1:65536',
    '::1:8180',
    '[127.0.0.1]:1',
  ])('"%s" is refused', (text) => {
    expect(() => parseListen(text)).toThrow(/--listen ".*": must be an IP address and a port/);
  });

  test('a name is refused: it may lead elsewhere tomorrow', () => {
    expect(() => parseListen('example.org:80')).toThrow(/must be an IP address/);
    expect(urlOf({ address: '::1', port: 80 })).toBe('http://[::1]:80/');
  });
});

test.each([
  ['127.0.0.1:8180', true],
  ['localhost', true],
  ['LOCALHOST:9000', true],
  ['[::1]:8180', true],
  ['', false],
  ['evil.example:8180', false],
  ['127.0.0.1.evil.example', false],
  ['localhost.evil.example:8180', false],
  ['10.0.0.7:8180', false],
  ['[::2]:8180', false],
  ['127.0.0.1:8180, evil.example', false],
])('Host: %s names loopback: %s', (host, names) => {
  expect(namesLoopback(host)).toBe(names);
});

describe('an answer that many ask for', () => {
  test('is asked for once at a time, and again once it is outdated', async () => {
    let asked = 0;
    const kept = new Kept({ mostAgeMs: 60_000, ask: async () => (asked += 1) });
    const answers = await Promise.all([kept.read(), kept.read(), kept.read()]);
    expect(answers.map(({ value }) => value)).toEqual([1, 1, 1]);
    expect((await kept.read()).value).toBe(1);
    expect(asked).toBe(1);
    kept.outdate();
    const again = await Promise.all([kept.read(), kept.read()]);
    expect(again.map(({ value }) => value)).toEqual([2, 2]);
  });

  test('that fails, the last one stays, with why and of when', async () => {
    let fails = false;
    const ask = async (): Promise<string> => {
      if (fails) throw new Error('no more');
      return 'first';
    };
    const kept = new Kept({ mostAgeMs: 0, ask });
    const { asOf } = await kept.read();
    fails = true;
    await expect.poll(async () => (await kept.read()).problem, { timeout: 10_000 }).not.toBeNull();
    expect(await kept.read()).toEqual({
      value: 'first',
      asOf,
      problem: { code: 'INTERNAL', message: 'no more' },
    });
  });
});

describe('latency', () => {
  test('is that of the minute in which it ended, without the time of the event itself', () => {
    const latency = new Latency();
    const time = new Date().toISOString();
    for (let ms = 1; ms <= 100; ms += 1) {
      const phases = [
        { phase: 'ipam', ms: 1 },
        { phase: 'kernel', ms },
        { phase: 'publish', ms: 5_000 },
      ];
      latency.add({ type: 'attached', time, phases });
    }
    latency.add({ type: 'detached', time, phases: [{ phase: 'total', ms: 7 }] });
    latency.add({ type: 'constructor', time, phases: [{ phase: 'total', ms: 9 }] });
    latency.add({
      type: 'attached',
      time: '1999-01-01T00:00:00Z',
      phases: [{ phase: 'x', ms: 9 }],
    });
    latency.add({ type: 'attached', time: 'never', phases: [{ phase: 'x', ms: 9 }] });
    const minutes = latency.minutes();
    expect(minutes).toHaveLength(15);
    expect(minutes.flatMap(({ attach }) => attach ?? [])).toEqual([
      { count: 100, p50: 51, p99: 100 },
    ]);
    expect(minutes.flatMap(({ detach }) => detach ?? [])).toEqual([{ count: 1, p50: 7, p99: 7 }]);
  });
});

test('of a body that is not as it should be, what can be shown is', () => {
  const event = {
    id: 'x',
    type: 'attached',
    host: 'h1',
    network: 'volt0',
    subject: 'web',
    time: '2026-01-02T03:04:05.678Z',
    traceparent: 'nonsense',
    body: {
      requestId: { no: 'text' },
      durationMs: { kernel: 2, ipam: -1, a: Number.NaN, b: 'c', publish: 1, last: 3 },
      error: 'none',
      device: null,
      addresses: [{ address: '10.42.0.5/24' }, 7, null, 'fd00::5'],
      reason: 'r'.repeat(10_000),
    },
  } as unknown as VoltEvent;
  expect(toldEvent(event, 3)).toMatchObject({
    sequence: 3,
    traceId: '',
    requestId: '',
    phases: [
      { phase: 'kernel', ms: 2 },
      { phase: 'last', ms: 3 },
      { phase: 'publish', ms: 1 },
    ],
    code: '',
    device: '',
    addresses: ['10.42.0.5/24', 'fd00::5'],
    reason: 'r'.repeat(512),
  });
});

test('what turns the direction of text is written out', () => {
  expect(JSON.parse(jsonText({ id: 'a\u202eb\u200b' }))).toEqual({ id: 'a\\u202eb\\u200b' });
});

describe('--traces', () => {
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-traces-'));
  const file = join(folder, 'traces.json');
  afterAll(() => {
    rmSync(folder, { recursive: true });
  });
  const id = 'a'.repeat(32);
  const span = (more: object): string =>
    JSON.stringify({ resourceSpans: [{ scopeSpans: [{ spans: [{ traceId: id, ...more }] }] }] });

  test('lines that are none, or of a shape of their own, are passed over', async () => {
    const lines = [
      `half of a line ${id}"}`,
      span({ name: 'second', startTimeUnixNano: '1770000000000002000', endTimeUnixNano: 'late' }),
      `{"resourceSpans": "${id}"}`,
      `[null, "${id}"]`,
      span({ name: 'first', startTimeUnixNano: '1770000000000000500', traceId: id.toUpperCase() }),
      span({
        name: 'first',
        startTimeUnixNano: '1770000000000000500',
        endTimeUnixNano: '1770000000001000500',
      }),
    ];
    writeFileSync(file, lines.join('\n'));
    const traces = await Traces.of(file);
    expect(await traces.trace(id)).toMatchObject([
      { name: 'first', startMs: 0, durationMs: 1, error: '' },
      { name: 'second', startMs: 0.0015, durationMs: 0 },
    ]);
    expect(await traces.trace('b'.repeat(32))).toEqual([]);
    writeFileSync(file, '');
    expect(await traces.trace(id)).toEqual([]);
  });

  test('a file that is not there, or none, is a wrong command line', async () => {
    await expect(Traces.of(join(folder, 'none'))).rejects.toMatchObject({ code: 'USAGE' });
    await expect(Traces.of(folder)).rejects.toMatchObject({ code: 'USAGE' });
  });
});

describe('the files of the page', () => {
  const page = new URL('../../../agent/cli/dashboard/page/', import.meta.url);
  const files = readdirSync(page).map((name) => [name, readFileSync(new URL(name, page), 'utf8')]);

  test('are small', () => {
    const bytes = files.reduce((sum, [, text = '']) => sum + gzipSync(text).length, 0);
    expect(bytes).toBeLessThan(100_000);
  });

  test.each(files)(
    '%s makes no markup of text, has nothing inline and names nobody else',
    (name, text = '') => {
      expect(text).not.toMatch(/innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser/);
      expect(text).not.toMatch(/\beval\(|new Function|\son[a-z]+=|\sstyle=|<style|javascript:/);
      const others = text.match(/https?:\/\/[^'" ]+/g) ?? [];
      expect(others.filter((url) => !url.startsWith('http://www.w3.org/'))).toEqual([]);
      if (name === 'index.html') expect(text.match(/<script(?![^>]* src=)/g)).toBeNull();
    },
  );
});
