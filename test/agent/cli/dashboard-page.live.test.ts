import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { headers } from 'nats';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { encodeAnswer } from '#protocol/envelope.ts';
import { type Browser, type Page, startChromium } from '../../support/chromium.ts';
import { type RunningDashboard, startDashboard } from '../../support/dashboard.ts';
import { fillLedger } from '../../support/filled-ledger.ts';
import { type Hosts, startHosts } from '../../support/hosts.ts';
import { type Server, startRedis } from '../../support/servers.ts';
import { VOLT0 } from '../../support/stack.ts';
import { openLedger } from '../../ipam-store/fixture.ts';

// The page of `voltnet dashboard`, in Debian's Chromium, with two agents behind it.

const TRACE_ID = '4bf92f3577b34da6a3ce929d0e0e4736';
const TRACEPARENT = `00-${TRACE_ID}-00f067aa0ba902b7-01`;
const MARKUP = '<img src=x onerror="document.title=1"><b id="planted">';
const folder = mkdtempSync(join(tmpdir(), 'volt-test-dashboard-'));
const traces = join(folder, 'traces.json');

let redis: Server;
let fleet: Hosts;
let dashboard: RunningDashboard;
let browser: Browser;
let page: Page;

beforeAll(async () => {
  writeFileSync(traces, '');
  redis = await startRedis();
  fleet = await startHosts({ hosts: ['h1', 'h2'], config: { redis: { url: redis.url } } });
  await fleet.client.putNetwork({ ...VOLT0 });
  await fleet.client.putNetwork({ network: 'lab', subnet: '10.77.0.0/24' });
  for (const [host, id] of [
    ['h1', 'web'],
    ['h2', 'db'],
  ] as const) {
    const labels = { note: MARKUP };
    const request = { id, workload: `vm-${id}`, kind: 'vm', network: 'volt0', labels } as const;
    await fleet.client.attach(host, request, { traceparent: TRACEPARENT });
  }
  const words = ['--traces', traces];
  [dashboard, browser] = await Promise.all([
    startDashboard({ natsUrl: fleet.nats.url, words }),
    startChromium(),
  ]);
  page = await browser.page();
  await page.open(dashboard.url);
});
afterAll(async () => {
  await browser[Symbol.asyncDispose]();
  await dashboard.interrupt();
  await fleet[Symbol.asyncDispose]();
  await redis.stop();
  rmSync(folder, { recursive: true });
});

/** By how many pixels the page is wider than the window. */
const SIDEWAYS = 'document.documentElement.scrollWidth - innerWidth';

const textOf = (selector: string): string =>
  `document.querySelector(${JSON.stringify(selector)}).textContent`;
const rowsOf = (body: string): Promise<string[]> =>
  page.evaluate(`[...document.querySelectorAll('#${body} > *')].map((row) => row.innerText)`);
const overview = (query = ''): Promise<unknown> => page.evaluate(`location.hash = '#/${query}'`);

describe('the overview', () => {
  test('shows hosts, networks with their pools, and attachments', async () => {
    await page.becomes(`document.querySelectorAll('#attachments-rows tr').length === 2`);
    await page.becomes(`document.querySelectorAll('#hosts-rows tr').length === 2`);
    await page.becomes(`document.querySelectorAll('#networks-rows tr').length === 2`);
    expect((await rowsOf('hosts-rows')).toSorted()).toEqual([
      expect.stringMatching(/^h1\s+live\s+1\s+\d+s ago$/),
      expect.stringMatching(/^h2\s+live\s+1\s+\d+s ago$/),
    ]);
    const networks = await rowsOf('networks-rows');
    expect(networks.find((row) => row.startsWith('volt0'))).toMatch(
      /bridged · 10\.42\.0\.0\/24\s+2 used · 1 reserved · 250 free/,
    );
    const [first, second] = await rowsOf('attachments-rows');
    expect(first).toMatch(/^db\s+vm-db[^]*vm\s+volt0\s+h2\s+10\.42\.0\.\d+/);
    expect(second).toMatch(/^web\s+vm-web[^]*vm\s+volt0\s+h1\s+10\.42\.0\.10/);
    expect(await page.evaluate(textOf('#link'))).toBe('Live');
    expect(await page.evaluate(textOf('#tile-hosts'))).toBe('2 of 2');
  });

  test('has the events of the last minutes, and a chart of how long they took', async () => {
    await page.becomes(`document.querySelectorAll('#events-rows li').length >= 4`);
    const events = await rowsOf('events-rows');
    expect(events.find((row) => row.includes('web'))).toMatch(/attached\s+web\s+[\d.]+ ms/);
    await page.becomes(`document.querySelectorAll('#latency circle').length === 2`);
    expect(await page.evaluate(`document.querySelector('#latency svg').ariaLabel`)).toMatch(
      /^Attach: last p50 [\d.,]+ ms, p99 [\d.,]+ ms; 2 in 15 minutes$/,
    );
  });

  test('an attach and a detach are there as they happen', async () => {
    await page.evaluate(`new Promise((resolve) => {
      globalThis.seenAt = {};
      new MutationObserver(() => {
        const text = document.getElementById('events-rows').innerText;
        for (const type of ['attached', 'detached']) {
          if (new RegExp(type + '\\\\s+quick').test(text)) globalThis.seenAt[type] ??= Date.now();
        }
      }).observe(document.getElementById('events-rows'), { childList: true });
      resolve();
    })`);
    const request = { id: 'quick', workload: 'vm-quick', kind: 'vm', network: 'volt0' } as const;
    await fleet.client.attach('h1', request);
    const answeredAt = Date.now();
    await page.becomes('globalThis.seenAt.attached');
    const took = (await page.evaluate<number>('globalThis.seenAt.attached')) - answeredAt;
    expect(took).toBeLessThan(5_000);
    await page.becomes(`document.getElementById('attachments-rows').innerText.includes('quick')`);
    console.info(
      `on the page ${took} ms after the answer, in the table ${Date.now() - answeredAt} ms`,
    );
    await fleet.client.detach('h1', { id: 'quick' });
    await page.becomes('globalThis.seenAt.detached');
    await page.becomes(`!document.getElementById('attachments-rows').innerText.includes('quick')`);
  });

  test('filters by what is typed, and by what the address says', async () => {
    await page.evaluate(`document.querySelector('[name=text]').focus()`);
    await page.type('10.42.0.10');
    await page.becomes(`document.querySelectorAll('#attachments-rows tr').length === 1`);
    expect((await rowsOf('attachments-rows'))[0]).toContain('web');
    expect(await page.evaluate(textOf('#attachments-note'))).toBe('1 of 2 match');
    await page.becomes(`location.hash === '#/?text=10.42.0.10'`);
    await overview('?host=h2');
    await page.becomes(`document.getElementById('attachments-rows').innerText.startsWith('db')`);
    expect(await page.evaluate(`document.querySelector('[name=host]').value`)).toBe('h2');
    await overview('?network=lab');
    await page.becomes(`document.querySelectorAll('#attachments-rows tr').length === 0`);
    await page.evaluate(`document.querySelector('[type=reset]').click()`);
    await page.becomes(`document.querySelectorAll('#attachments-rows tr').length === 2`);
  });
});

describe('one attachment', () => {
  test('is opened by keyboard, and left again', async () => {
    await page.evaluate(`document.querySelector('#filters [type=reset]').focus()`);
    await page.press('Tab');
    expect(await page.evaluate('document.activeElement.textContent')).toBe('db');
    await page.press('Enter');
    await page.becomes(`!document.getElementById('attachment').hidden`);
    expect(await page.evaluate('document.activeElement.id')).toBe('attachment-title');
    expect(await page.evaluate(textOf('#attachment-title'))).toBe('db');
    await page.evaluate('history.back()');
    await page.becomes(`document.getElementById('attachment').hidden`);
    expect(await page.evaluate('document.activeElement.textContent')).toBe('db');
  });

  test('shows its life with the phases, its trace and the spans of it', async () => {
    writeFileSync(traces, `${JSON.stringify(exported())}\n`);
    await page.evaluate(`location.hash = '#/attachment/h1/volt0/web'`);
    await page.becomes(`document.getElementById('attachment-state').textContent === 'attached'`);
    await page.becomes(`document.querySelectorAll('#life-rows > li time').length > 0`);
    const [life] = await rowsOf('life-rows');
    expect(life).toMatch(/attached[^]*tap-web 10\.42\.0\.10\/24[^]*ipam[^]*kernel[^]*publish/);
    expect(life).toContain(TRACE_ID);
    await page.evaluate(`document.querySelector('#life-rows button').click()`);
    await page.becomes(`document.querySelectorAll('.spans tbody tr').length === 2`);
    const spans = await page.evaluate<string>(`document.querySelector('.spans').innerText`);
    expect(spans).toMatch(
      /Spans of 12 ms[^]*attach\s+12 ms[^]*RTM_NEWLINK tap-web\s*EBUSY\s+2\.0 ms/,
    );
  });
});

test('what came over the bus stays text', async () => {
  const made = headers();
  made.set('ce-source', '/volt/network/h1');
  made.set('ce-id', MARKUP);
  made.set('ce-subject', MARKUP);
  made.set('ce-time', new Date().toISOString());
  const error = { code: MARKUP, message: `${MARKUP}\u202e`, retryable: false };
  const body = {
    error,
    operation: MARKUP,
    request: {},
    durationMs: { [MARKUP]: 3 },
    requestId: 'r',
  };
  await overview();
  for (const type of ['failed', 'constructor']) {
    const subject = `volt.net.v1.event.h1.volt0.${type}`;
    fleet.connection.publish(subject, encodeAnswer(body), { headers: made });
  }
  await page.becomes(`document.getElementById('events-rows').innerText.includes('onerror')`);
  await page.evaluate(
    `location.hash = document.querySelector('#events-rows a[href*=onerror]').hash`,
  );
  await page.becomes(`document.getElementById('attachment-title').textContent.includes('onerror')`);
  expect(await page.evaluate(`document.querySelectorAll('#planted, img[src=x], b').length`)).toBe(
    0,
  );
  // Its labels are markup as well.
  await page.evaluate(`location.hash = '#/attachment/h1/volt0/web'`);
  await page.becomes(`document.getElementById('attachment-facts').innerText.includes('onerror')`);
  expect(await page.evaluate(`document.querySelectorAll('#planted, img[src=x], b').length`)).toBe(
    0,
  );
  expect(await page.evaluate('document.title')).toBe('web · Volt network');
});

test.each([
  { width: 360, height: 800, scheme: 'dark' },
  { width: 1440, height: 900, scheme: 'light' },
] as const)('axe-core finds nothing serious: $width pixels, $scheme', async (window) => {
  await page.show(window);
  await overview();
  await page.becomes(`!document.getElementById('overview').hidden`);
  expect(await page.axe()).toEqual([]);
  expect(await page.evaluate(SIDEWAYS)).toBeLessThanOrEqual(0);
  await page.evaluate(`location.hash = '#/attachment/h1/volt0/web'`);
  await page.becomes(`document.querySelectorAll('#life-rows > li time').length > 0`);
  expect(await page.axe()).toEqual([]);
  expect(await page.evaluate(SIDEWAYS)).toBeLessThanOrEqual(0);
});

test('the page says that NATS is away, and goes on when it is back', async () => {
  await overview();
  await fleet.nats.kill();
  await page.becomes(`document.getElementById('link').textContent === 'NATS is away'`);
  await page.becomes(`document.getElementById('hosts-note').textContent.includes('NATS')`);
  expect(await rowsOf('attachments-rows')).toHaveLength(2);
  await fleet.nats.restart();
  await page.becomes(`document.getElementById('link').textContent === 'Live'`);
  await page.becomes(`document.getElementById('hosts-note').textContent === ''`);
  const request = { id: 'later', workload: 'vm-later', kind: 'vm', network: 'volt0' } as const;
  await expect.poll(() => fleet.client.attach('h2', request), { timeout: 30_000 }).toBeTruthy();
  await page.becomes(`document.getElementById('events-rows').innerText.includes('later')`);
  await page.becomes(`document.getElementById('attachments-rows').innerText.includes('later')`);
});

test('it asked nobody but its server, and nothing was refused or thrown', () => {
  const { origin } = new URL(dashboard.url);
  expect(page.requests.length).toBeGreaterThan(20);
  expect(page.requests.filter((url) => new URL(url).origin !== origin)).toEqual([]);
  expect(page.problems).toEqual([]);
});

test('any number of pages may be open, as long as few are looked at', async () => {
  const hide = `(() => {
    Object.defineProperty(document, 'hidden', { configurable: true, get: () => true });
    document.dispatchEvent(new Event('visibilitychange'));
  })()`;
  const show = `delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))`;
  const isLive = `document.getElementById('link').textContent === 'Live'`;
  const pages: Page[] = [];
  for (let n = 0; n < 7; n += 1) {
    const one = await browser.page();
    pages.push(one);
    await one.open(dashboard.url);
    await one.becomes(isLive);
    await one.evaluate(hide);
  }
  const request = { id: 'unseen', workload: 'vm-unseen', kind: 'vm', network: 'volt0' } as const;
  await fleet.client.attach('h1', request);
  await pages[0]?.send('Page.bringToFront');
  await pages[0]?.evaluate(show);
  await pages[0]?.becomes(`document.getElementById('events-rows').innerText.includes('unseen')`);
  await fleet.client.detach('h1', { id: 'unseen' });
  await page.send('Page.bringToFront');
  // A page that is closed may not answer any more.
  for (const one of pages) void one.send('Page.close');
});

test('ten thousand attachments are shown page by page, and the page stays at hand', async () => {
  // The ledger is filled past its functions: who read it meanwhile would not learn of the rest.
  await page.open('about:blank');
  const raw = new Redis(redis.url);
  const ledger = await openLedger(redis.url);
  const filling = { root: 'volt:{ledger}', hosts: 20, leasesPerHost: 500, networks: 10 };
  await fillLedger(ledger, raw, filling);
  await ledger.close();
  raw.disconnect();
  await page.open(dashboard.url);
  await page.evaluate(`(() => {
    globalThis.longestMs = 0;
    const tasks = new PerformanceObserver((list) => {
      for (const { duration } of list.getEntries())
        globalThis.longestMs = Math.max(globalThis.longestMs, duration);
    });
    tasks.observe({ type: 'longtask' });
  })()`);
  await page.becomes(
    `/^1–25 of 10,00\\d$/.test(document.getElementById('page-place').textContent)`,
  );
  await page.evaluate(`document.getElementById('page-after').click()`);
  await page.becomes(`document.getElementById('page-place').textContent.startsWith('26–50 of')`);
  expect(await rowsOf('attachments-rows')).toHaveLength(25);
  await page.evaluate(`document.querySelector('[name=text]').focus()`);
  await page.type('vm-00019-499');
  await page.becomes(`document.querySelectorAll('#attachments-rows tr').length === 1`);
  expect(await page.evaluate(textOf('#attachments-note'))).toMatch(/^1 of 10,00\d match$/);
  const longestMs = await page.evaluate<number>('globalThis.longestMs');
  expect(longestMs).toBeLessThan(2_000);
  console.info(`longest task of the page: ${longestMs} ms`);
});

/** An export as the OpenTelemetry Collector's file exporter writes it. */
function exported(): object {
  const begin = 1_770_000_000_000_000_000n;
  const span = (spanId: string, name: string, fromMs: number, toMs: number): object => ({
    traceId: TRACE_ID,
    spanId,
    name,
    startTimeUnixNano: String(begin + BigInt(fromMs) * 1_000_000n),
    endTimeUnixNano: String(begin + BigInt(toMs) * 1_000_000n),
  });
  const attributes = [{ key: 'service.name', value: { stringValue: 'volt-network-agent' } }];
  const spans = [
    span('00f067aa0ba90201', 'attach', 0, 12),
    {
      ...span('00f067aa0ba90202', 'RTM_NEWLINK tap-web', 3, 5),
      parentSpanId: '00f067aa0ba90201',
      status: { code: 2, message: 'EBUSY' },
    },
    { ...span('00f067aa0ba90203', 'of another trace', 0, 1), traceId: 'f'.repeat(32) },
  ];
  return { resourceSpans: [{ resource: { attributes }, scopeSpans: [{ scope: {}, spans }] }] };
}
