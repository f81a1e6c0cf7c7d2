import { execFileSync, spawnSync } from 'node:child_process';
import { createServer } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { METRICS } from '#agent/telemetry/metrics-table.ts';
import type { Condition } from '#protocol/conditions.ts';
import { startAgent, until } from '../../support/agent.ts';
import { addNamespace, ip } from '../../support/kernel.ts';
import { samplesIn, samplesOf, scrape, sumOf, untilScraped } from '../../support/metrics.ts';
import { freePort } from '../../support/servers.ts';
import { startStack, type Stack, VOLT0 } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// A real agent that serves metrics, scraped after attaches, a refused attach, a repair and detaches.

let stack: Stack;
let port: number;

beforeAll(async () => {
  port = await freePort();
  addNamespace('box');
  stack = await startStack({
    networks: [VOLT0, { network: 'small', subnet: '10.43.0.0/30' } as { network: string }],
    config: { metrics: { listen: `127.0.0.1:${port}`, poolSeconds: 1 } },
  });
});
afterAll(() => stack[Symbol.asyncDispose]());

const now = async (): Promise<ReturnType<typeof samplesIn>> => samplesIn(await scrape(port));

test('the life of attachments is in the metrics, and is gone with them', async () => {
  const { client, host } = stack;
  const { attachment } = await client.attach(host, {
    ...{ id: 'web', workload: 'vm-web', kind: 'vm', network: 'volt0' },
  });
  await client.attach(host, {
    ...{ id: 'box', workload: 'container-box', kind: 'container', network: 'volt0' },
    netns: '/run/netns/box',
  });
  await client.attach(host, { id: 'web', workload: 'vm-web', kind: 'vm', network: 'volt0' });
  await client.update(host, { id: 'web', labels: { a: 'b' } });
  const refused = client.attach(host, {
    ...{ id: 'none', workload: 'vm-none', kind: 'vm', network: 'nowhere' },
  });
  await expect(refused).rejects.toMatchObject({ code: 'UNKNOWN_NETWORK' });
  // Somebody deletes a device: the agent makes it again.
  ip('link', 'del', attachment.device?.name ?? '');

  const volt0 = { network: 'volt0', type: 'bridged', state: 'attached' };
  const before = await untilScraped(port, 'the repair and the pool are told', (samples) => {
    const used = sumOf(samples, 'volt_network_pool_used_addresses', { network: 'volt0' });
    const repaired = { action: 'remake', result: 'done' };
    const remade = sumOf(samples, 'volt_network_reconcile_actions_total', repaired);
    return used === 2 && remade === 1;
  });
  expect(sumOf(before, 'volt_network_attachments', volt0)).toBe(2);
  expect(sumOf(before, 'volt_network_pool_addresses', { network: 'volt0' })).toBe(253);
  const requests = (code: string): number | undefined =>
    sumOf(before, 'volt_network_requests_total', { operation: 'attach', code });
  expect([requests('OK'), requests('UNKNOWN_NETWORK')]).toEqual([3, 1]);
  const counts = (labels: Record<string, string>): number | undefined =>
    sumOf(before, 'volt_network_change_duration_seconds_count', labels);
  const attach = { operation: 'attach', type: 'bridged' };
  expect(counts({ ...attach, phase: 'ipam', result: 'ok' })).toBe(2);
  expect(counts({ ...attach, phase: 'kernel', result: 'ok' })).toBe(2);
  expect(counts({ ...attach, phase: 'answer', result: 'ok' })).toBe(2);
  expect(counts({ ...attach, phase: 'answer', result: 'replayed' })).toBe(1);
  expect(counts({ operation: 'attach', type: 'unknown', result: 'error' })).toBe(1);
  expect(counts({ operation: 'update', phase: 'kernel', result: 'ok' })).toBe(1);
  const tookSeconds = sumOf(before, 'volt_network_change_duration_seconds_sum', {
    ...{ ...attach, phase: 'answer', result: 'ok' },
  });
  expect(tookSeconds).toBeGreaterThan(0);
  expect(tookSeconds).toBeLessThan(60);

  await client.detach(host, { id: 'web' });
  await client.detach(host, { id: 'box' });
  await stack.gone('web');
  await stack.gone('box');
  const after = await untilScraped(port, 'the network is gone', (samples) => {
    return samplesOf(samples, 'volt_network_pool_used_addresses').length === 0;
  });
  expect(samplesOf(after, 'volt_network_attachments')).toEqual([]);
  const detached = { operation: 'detach', type: 'bridged', phase: 'total' };
  expect(sumOf(after, 'volt_network_change_duration_seconds_count', detached)).toBe(2);
});

test('the state of the parts is told, one sample for each state', async () => {
  const samples = await now();
  const holds = (name: string, label: string): unknown[] =>
    samplesOf(samples, name)
      .filter(({ value }) => value === 1)
      .map(({ labels }) => labels[label]);
  expect(holds('volt_network_nats_state', 'state')).toEqual(['connected']);
  expect(holds('volt_network_ledger_state', 'state')).toEqual(['ready']);
  expect(holds('volt_network_session_state', 'state')).toEqual(['armed']);
  expect(sumOf(samples, 'volt_network_heartbeat_age_seconds')).toBeLessThan(30);
  expect(sumOf(samples, 'volt_network_unexpected_errors_total')).toBe(0);
  const rss = sumOf(samples, 'volt_network_resident_memory_bytes') ?? 0;
  const [, kib] = /VmRSS:\s+(\d+)/.exec(
    execFileSync('cat', [`/proc/${stack.agent.pid}/status`], { encoding: 'utf8' }),
  ) ?? ['', '0'];
  expect(rss / (Number(kib) * 1_024)).toBeGreaterThan(0.5);
  expect(rss / (Number(kib) * 1_024)).toBeLessThan(2);
  for (const { labels } of samplesOf(samples, 'volt_network_condition')) {
    expect(labels['host_name']).toBe('h1');
  }
});

test('a detach that waits is told by its age, until it has ended', async () => {
  const { client, host, redis } = stack;
  const oldest = 'volt_network_unfinished_oldest_age_seconds';
  await client.attach(host, { id: 'slow', workload: 'vm-slow', kind: 'vm', network: 'volt0' });
  expect(samplesOf(await now(), oldest)).toEqual([]);
  redis.pause();
  await client.detach(host, { id: 'slow' });
  const waits = await untilScraped(port, 'it is old', (samples) => {
    return (sumOf(samples, oldest, { network: 'volt0' }) ?? 0) > 1;
  });
  expect(sumOf(waits, 'volt_network_attachments', { state: 'detaching' })).toBe(1);
  redis.resume();
  await untilScraped(port, 'it has ended', (samples) => samplesOf(samples, oldest).length === 0);
  await stack.gone('slow');
});

test('an error that nobody expects is an increase, whatever was asked for', async () => {
  const counted = samplesOf(await now(), 'volt_network_requests_total', { code: 'INTERNAL' });
  const asked = counted.map(({ labels }) => labels['operation']);
  expect(asked).toEqual(
    expect.arrayContaining(['list', 'network.put', 'ledger.check', 'job.attach']),
  );
});

test('jobs that are tried again are pending, until they are done or deleted', async () => {
  const { client, host, connection } = stack;
  const vm = (id: string) => ({ id, workload: id, kind: 'vm', network: 'small' }) as const;
  for (const id of ['one', 'two']) await client.attach(host, vm(id));
  for (let n = 0; n < 5; n += 1) await client.submitAttach(host, vm(`full-${n}`));
  await untilScraped(port, 'they are pending', (samples) => {
    return sumOf(samples, 'volt_network_jobs_pending') === 5;
  });
  const { streams } = await connection.jetstreamManager();
  await streams.purge('VOLT_NET_JOBS');
  await untilScraped(port, 'none is', (samples) => {
    return sumOf(samples, 'volt_network_jobs_pending') === 0;
  });
  // More than the agent takes at once, all of them before it looks.
  process.kill(stack.agent.pid, 'SIGSTOP');
  for (let n = 0; n < 400; n += 1) await client.submitAttach(host, vm(`full-again-${n}`));
  process.kill(stack.agent.pid, 'SIGCONT');
  await untilScraped(port, 'they are pending', (samples) => {
    return (sumOf(samples, 'volt_network_jobs_pending') ?? 0) > 0;
  });
  await streams.purge('VOLT_NET_JOBS');
  await untilScraped(port, 'none is', (samples) => {
    return sumOf(samples, 'volt_network_jobs_pending') === 0;
  });
  for (const id of ['one', 'two']) await client.detach(host, { id });
});

test('what ends shows at once: Redis away', async () => {
  await stack.redis.kill();
  const condition = { condition: 'ledger-away' };
  const away = await untilScraped(port, 'the condition is told', (samples) => {
    return sumOf(samples, 'volt_network_condition', condition) === 1;
  });
  expect(sumOf(away, 'volt_network_ledger_state', { state: 'ready' })).toBe(0);
  await stack.redis.restart();
  await untilScraped(port, 'the condition is over', (samples) => {
    return sumOf(samples, 'volt_network_condition', condition) === 0;
  });
});

test('the scrape has the metrics of the table and no others, with the labels of the table', async () => {
  const found = new Map<string, Set<string>>();
  for (const { name, labels } of await now()) {
    const metric = Object.hasOwn(METRICS, name) ? name : name.replace(/_(bucket|sum|count)$/, '');
    const known = found.get(metric) ?? new Set();
    for (const label of Object.keys(labels)) known.add(label);
    found.set(metric, known);
  }
  found.delete('target_info');
  for (const [name, labels] of found) {
    const { labels: expected = [], kind } = METRICS[name] ?? {};
    const always = ['host_name', ...(kind === 'histogram' ? ['le'] : [])];
    expect([name, [...labels].toSorted()]).toEqual([name, [...expected, ...always].toSorted()]);
  }
  expect(found.size).toBeGreaterThan(25);
});

test('promtool finds nothing to say of the scrape', async () => {
  const { status, stdout, stderr } = spawnSync(requireTool('promtool'), ['check', 'metrics'], {
    input: await scrape(port),
    encoding: 'utf8',
  });
  expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: '', stderr: '' });
});

test('an address in use is a condition, and the agent works all the same until it is free', async () => {
  const taken = await freePort();
  const other = createServer();
  await new Promise<void>((resolve) => {
    other.listen(taken, '127.0.0.1', resolve);
  });
  const { nats, redis } = stack;
  const agent = await startAgent({
    config: {
      ...{ host: 'h2', nftablesTable: 'second' },
      nats: { url: nats.url },
      redis: { url: redis.url },
      metrics: { listen: `127.0.0.1:${taken}` },
    },
  });
  try {
    await agent.ready();
    const conditions = async (): Promise<readonly Condition[]> =>
      (await agent.health())['conditions'] as readonly Condition[];
    await until('the condition is told', async () => {
      const found = (await conditions()).find(({ name }) => name === 'metrics-unserved');
      return found?.blocks === false && found.reason.includes('EADDRINUSE');
    });
    const vm = { id: 'second', workload: 'vm-second', kind: 'vm', network: 'volt0' } as const;
    expect(await stack.client.attach('h2', vm)).toMatchObject({ attachment: { id: 'second' } });
    await stack.client.detach('h2', { id: 'second' });
    await new Promise((resolve) => {
      other.close(resolve);
    });
    await until('metrics are served', async () => (await scrape(taken)).includes('host_name="h2"'));
    await until('nothing is wrong', async () => (await conditions()).length === 0);
  } finally {
    other.close();
    await agent.stop();
  }
});
