import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { VoltEvent, VoltNetworkClient } from '#protocol/client.ts';
import { VoltError } from '#protocol/errors.ts';
import { parseNetwork } from '#protocol/network.ts';
import type { Ledger } from '#ipam-store/ledger.ts';
import { until } from '../../support/agent.ts';
import { fillLedger } from '../../support/filled-ledger.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { askFor, openLedger } from '../../ipam-store/fixture.ts';

// A nats-server that takes messages of 16 KiB, and a host and a ledger that have more to tell than that.

const MAX_PAYLOAD = 16_384;
const ROOT = 'volt:{ledger}';
/** Of so many bytes, and a few. */
const labelsOf = (bytes: number): Record<string, string> =>
  Object.fromEntries(Array.from({ length: bytes / 255 }, (_, n) => [`k-${n}`, 'x'.repeat(249)]));
const ATTACHED = 12;
const LEAKED = 120;
const HOSTS = 2_000;
let stack: Stack;
let ledger: Ledger;
let raw: Redis;

const request = (id: string, labels: Record<string, string> = labelsOf(3_000)) => ({
  id,
  workload: `vm-${id}`,
  kind: 'vm' as const,
  network: 'volt0',
  labels,
});

/** So many, in a subnet that no other network has. */
const networkOf = (name: string, octet: number, reservations: number) => ({
  network: name,
  subnet: `10.${octet}.0.0/16`,
  reservations: Object.fromEntries(
    Array.from({ length: reservations }, (_, n) => [
      `workload-${n}`,
      `10.${octet}.${(n >> 8) + 1}.${n & 255}`,
    ]),
  ),
});

beforeAll(async () => {
  stack = await startStack({ natsConfig: `max_payload: ${MAX_PAYLOAD}` });
  ledger = await openLedger(stack.redis.url);
  raw = new Redis(stack.redis.url);
  for (let n = 0; n < ATTACHED; n += 1) await stack.client.attach(stack.host, request(`vm-${n}`));
  const record = await ledger.getNetwork('volt0');
  if (record === null) throw new Error('there is no volt0');
  const own = {
    host: stack.host,
    machineId: readFileSync('/etc/machine-id', 'utf8').trim(),
    bootId: readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim(),
  };
  for (let n = 0; n < LEAKED; n += 1) await ledger.acquire(askFor(record, `leaked-${n}`, own));
  await ledger.putNetwork(parseNetwork(networkOf('large', 90, 8_000)));
  await ledger.putNetwork(parseNetwork(networkOf('middle', 91, 200)));
  await ledger.putNetwork(parseNetwork(networkOf('other', 92, 200)));
  await ledger.putNetwork(parseNetwork(networkOf('further', 93, 200)));
  const filling = { root: ROOT, hosts: HOSTS, leasesPerHost: 1, networks: 4 };
  await fillLedger(ledger, raw, filling);
});
afterAll(async () => {
  raw.disconnect();
  await ledger.close();
  await stack[Symbol.asyncDispose]();
});

async function refusalOf(work: Promise<unknown>): Promise<VoltError> {
  const error: unknown = await work.then(
    (answer) => new Error(`answered ${JSON.stringify(answer).slice(0, 200)}`),
    (cause: unknown) => cause,
  );
  if (error instanceof VoltError) return error;
  throw error;
}

interface Paged {
  readonly cursor?: string | undefined;
}
type Ask = (client: VoltNetworkClient, cursor?: string) => Promise<readonly [Paged, unknown[]]>;

// Asks for one page, and names the elements that it has.
const PAGED: readonly [name: string, expected: number, ask: Ask][] = [
  [
    'list',
    ATTACHED,
    async (client, cursor) => {
      const page = await client.list('h1', { cursor });
      return [page, page.attachments.map(({ id }) => id)];
    },
  ],
  [
    'list of all hosts',
    ATTACHED + LEAKED + HOSTS,
    async (client, cursor) => {
      const page = await client.listFleet('h1', { cursor });
      return [page, page.attachments.map(({ id }) => id)];
    },
  ],
  [
    'ledger.leases',
    ATTACHED + LEAKED + HOSTS,
    async (client, cursor) => {
      const page = await client.ledgerLeases({ cursor });
      return [page, page.leases.map(({ id }) => id)];
    },
  ],
  [
    'ledger.hosts',
    1 + HOSTS,
    async (client, cursor) => {
      const page = await client.ledgerHosts({ cursor });
      return [page, page.hosts.map(({ host }) => host)];
    },
  ],
];

describe('an answer that is larger than what nats-server takes', () => {
  test.each(PAGED)('comes in pages that fit: %s', async (_name, expected, ask) => {
    const found: unknown[] = [];
    let pages = 0;
    let cursor: string | undefined;
    do {
      const [page, elements] = await ask(stack.client, cursor);
      pages += 1;
      found.push(...elements);
      ({ cursor } = page);
    } while (cursor !== undefined);
    expect(pages).toBeGreaterThan(1);
    expect(found).toHaveLength(expected);
    expect(new Set(found).size).toBe(expected);
  });

  test('says so where there is more than an answer holds: check, ledger.check', async () => {
    const { client, host } = stack;
    const checked = await client.check(host);
    expect(checked).toMatchObject({ inSync: false, truncated: true });
    expect(checked.differences.length).toBeGreaterThan(10);
    const fleet = await client.checkLedger();
    expect(fleet).toMatchObject({ inSync: false, truncated: true, checked: [host] });
    expect(fleet.silent).toHaveLength(HOSTS);
  });

  test('is refused where it cannot be cut: network.get, and network.list at that network', async () => {
    const { client } = stack;
    const refusal = { code: 'TOO_LARGE', details: { limit: MAX_PAYLOAD - 256 } };
    const got = await refusalOf(client.getNetwork('large'));
    expect(got).toMatchObject(refusal);
    expect(got.details?.['bytes']).toBeGreaterThan(200_000);
    expect(got.message).toMatch(/network.get.*max_payload/);
    const first = await client.listNetworks();
    expect(first.networks.map(({ network }) => network.network)).toEqual(['further']);
    expect(await refusalOf(client.listNetworks({ cursor: first.cursor }))).toMatchObject(refusal);
    const next = await client.listNetworks({ cursor: 'large' });
    expect(next.networks.map(({ network }) => network.network)).toContain('middle');
  });
});

describe('a request that is too large', () => {
  test.each<[string, (client: VoltNetworkClient) => Promise<unknown>]>([
    ['attach', (client) => client.attach('h1', request('big', labelsOf(17_000)))],
    ['dry run', (client) => client.dryRun('h1', request('big', labelsOf(17_000)))],
    ['update', (client) => client.update('h1', { id: 'vm-0', labels: labelsOf(17_000) })],
    ['job', (client) => client.submitAttach('h1', request('big', labelsOf(17_000)))],
    ['network.put', (client) => client.putNetwork(networkOf('put', 94, 800))],
  ])('for nats-server is not sent: %s', async (_name, ask) => {
    const { code, details, message } = await refusalOf(ask(stack.client));
    expect(code).toBe('TOO_LARGE');
    expect(details).toMatchObject({ limit: MAX_PAYLOAD });
    expect(details?.['bytes']).toBeGreaterThan(MAX_PAYLOAD);
    expect(message).toContain('max_payload');
    expect(stack.connection.isClosed()).toBe(false);
  });

  test('for its answer to be sent is refused before anything is done', async () => {
    const { client, host } = stack;
    const refusal = { code: 'TOO_LARGE', details: { limit: MAX_PAYLOAD - 256 - 4_096 } };
    const large = request('big', labelsOf(14_000));
    expect(await refusalOf(client.attach(host, large))).toMatchObject(refusal);
    expect(await refusalOf(client.putNetwork(networkOf('put', 94, 560)))).toMatchObject(refusal);
    expect((await refusalOf(client.get(host, { id: 'big' }))).code).toBe('NOT_FOUND');
    expect((await refusalOf(client.getNetwork('put'))).code).toBe('UNKNOWN_NETWORK');
  });
});

test('events are made to fit, and an attachment that is too large to be shown says so', async () => {
  const { client, host } = stack;
  const types = ['attached', 'detached', 'failed'] as const;
  const events = client.watch({ host, types });
  const next = async (id: string): Promise<VoltEvent> => {
    for (;;) {
      const { value: event } = await events.next();
      if (event === undefined) throw new Error('the watch ended');
      if (event.subject === id) return event;
    }
  };
  await client.submitAttach(host, request('zz-big', labelsOf(15_820)));
  const attached = await next('zz-big');
  expect(attached).toMatchObject({
    type: 'attached',
    body: { id: 'zz-big', truncated: ['labels'] },
  });
  const tooLarge = { code: 'TOO_LARGE', details: { limit: expect.any(Number) as number } };
  expect(await refusalOf(client.get(host, { id: 'zz-big' }))).toMatchObject(tooLarge);
  const listed = await refusalOf(client.list(host, { cursor: 'vm-9' }));
  expect(listed).toMatchObject(tooLarge);
  expect(listed.message).toContain('zz-big');
  const unknown = { ...request('no-network', labelsOf(15_820)), network: 'unknown' };
  await client.submitAttach(host, unknown);
  expect(await next('no-network')).toMatchObject({
    type: 'failed',
    body: { truncated: ['request'] },
  });
  await client.submitDetach(host, { id: 'zz-big' });
  expect((await next('zz-big')).type).toBe('detached');
  expect((await stack.agent.health())['eventsPending']).toBe(0);
});

test('a server that takes more is given more', async () => {
  const { nats, client } = stack;
  writeFileSync(join(nats.folder, 'nats.conf'), 'max_payload: 1MB');
  await nats.restart();
  await until('the large network is answered', async () => {
    const { network } = await client.getNetwork('large');
    return network.network === 'large';
  });
  expect((await client.list(stack.host)).attachments).toHaveLength(ATTACHED);
});
