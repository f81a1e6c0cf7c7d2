import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, headers } from 'nats';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { FleetListAnswer } from '#protocol/attachment.ts';
import { VoltNetworkClient } from '#protocol/client.ts';
import { type RunningAgent, startAgent, until } from '../../support/agent.ts';
import { onMachine } from '../../support/machine.ts';
import { type Server, startNats, startRedis } from '../../support/servers.ts';
import { VOLT0 } from '../../support/stack.ts';

// What the agents of other hosts know of what h1 does. h1 and `deaf` send heartbeats once a second; `hears` sends one in
// minutes, so that it knows by notices what it knows at once; `deaf` may not hear notices.

const VOLTNET = new URL('../../../deploy/bin/voltnet', import.meta.url).pathname;
const ACCOUNTS = `
  authorization { users: [
    { user: any, password: any }
    { user: deaf, password: deaf, permissions: { subscribe: { deny: ["volt.net.v1.changed.>"] } } }
  ] }
  no_auth_user: any
`;

const open = new AsyncDisposableStack();
let nats: Server;
let redis: Server;
let client: VoltNetworkClient;

async function startHost(host: string, config: object = {}): Promise<RunningAgent> {
  const agent = await startAgent({
    config: {
      host,
      nats: { url: nats.url },
      redis: { url: redis.url },
      suspectAfterSeconds: 600,
      nftablesTable: `volt_${host}`,
      ...config,
    },
    wrap: onMachine({ machineId: randomBytes(16).toString('hex') }, open),
  });
  open.defer(async () => void (await agent.stop()));
  await until('it serves', async () => (await agent.health())['requests'] === 'ready');
  return agent;
}

beforeAll(async () => {
  [nats, redis] = await Promise.all([startNats({ config: ACCOUNTS }), startRedis()]);
  open.defer(async () => void (await Promise.all([nats.stop(), redis.stop()])));
  await (await startHost('h1')).ready();
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-deaf-'));
  open.defer(() => rmSync(folder, { recursive: true }));
  const passwordFile = join(folder, 'password');
  writeFileSync(passwordFile, 'deaf');
  await Promise.all([
    startHost('hears', { heartbeatSeconds: 200 }),
    startHost('deaf', { nats: { url: nats.url, username: 'deaf', passwordFile } }),
  ]);
  const connection = await connect({ servers: nats.url, maxReconnectAttempts: -1 });
  open.defer(() => connection.close());
  client = new VoltNetworkClient({ connection, headers });
  await client.putNetwork(VOLT0);
});
afterAll(() => open.disposeAsync());

const attach = (id: string, network = 'volt0') =>
  client.attach('h1', { id, workload: `vm-${id}`, kind: 'vm', network });

const textOf = ({ attachments }: FleetListAnswer): string[] =>
  attachments.map(({ id, host, network }) => `${network}/${id} on ${host}`);

const listed = async (at: string, network?: string): Promise<string[]> =>
  textOf(await client.listFleet(at, network === undefined ? {} : { network }));

const untilListed = (at: string, expected: readonly string[], network?: string): Promise<void> =>
  until(`${at} lists ${expected.join(', ')}`, async () => {
    expect(await listed(at, network)).toEqual(expected);
    return true;
  });

test('what another host attaches and detaches is listed at once, by the notice', async () => {
  expect(await listed('hears', 'volt0')).toEqual([]);
  const { attachment } = await attach('a');
  await untilListed('hears', ['volt0/a on h1'], 'volt0');
  const { attachments, behind } = await client.listFleet('hears', { network: 'volt0' });
  const { id, generation, workload, kind, mac, lease } = attachment;
  const addresses = attachment.addresses.map(({ address }) => address);
  const { grantedAt } = lease;
  expect(attachments).toEqual([
    { id, generation, host: 'h1', network: 'volt0', workload, kind, mac, addresses, grantedAt },
  ]);
  expect(behind).toEqual([]);
  await client.detach('h1', { id: 'a' });
  await untilListed('hears', [], 'volt0');
});

test('an agent that hears no notices lists it within a period', async () => {
  expect(await listed('deaf', 'volt0')).toEqual([]);
  await attach('b');
  await untilListed('deaf', ['volt0/b on h1'], 'volt0');
  await client.detach('h1', { id: 'b' });
  await untilListed('deaf', [], 'volt0');
});

test('a network that is new, or deleted and made again, is in the list of all', async () => {
  const network = { network: 'other', subnet: '10.43.0.0/24' };
  await client.putNetwork(network);
  await attach('c', 'other');
  for (const at of ['hears', 'deaf']) await untilListed(at, ['other/c on h1']);
  await client.detach('h1', { id: 'c' });
  await until('it is deleted', async () => (await client.deleteNetwork('other')).deleted);
  for (const at of ['hears', 'deaf']) await untilListed(at, []);
  await client.putNetwork(network);
  await attach('d', 'other');
  for (const at of ['hears', 'deaf']) await untilListed(at, ['other/d on h1']);
});

test('pages hold each attachment once, whatever is asked for', async () => {
  for (const id of ['e', 'f', 'g']) await attach(id);
  const all = ['other/d on h1', 'volt0/e on h1', 'volt0/f on h1', 'volt0/g on h1'];
  await untilListed('hears', all);
  for (const limit of [1, 2, 3, 4]) {
    const found: string[] = [];
    let cursor: string | undefined;
    do {
      const page = await client.listFleet('hears', { limit, cursor });
      expect(page.attachments.length).toBeLessThanOrEqual(limit);
      found.push(...textOf(page));
      ({ cursor } = page);
    } while (cursor !== undefined);
    expect(found).toEqual(all);
  }
  expect(textOf(await client.listFleet('hears', { workload: 'vm-f' }))).toEqual(['volt0/f on h1']);
  expect(textOf(await client.listFleet('hears', { kind: 'container' }))).toEqual([]);
  const env = { ...process.env, VOLT_NET_NATS_URL: nats.url };
  const words = ['list', '--all-hosts', '--host', 'deaf', '--network', 'other'];
  const shown = execFileSync(VOLTNET, words, { encoding: 'utf8', env });
  expect(shown).toMatch(/^ID +HOST .*\nd +h1 +vm +other +10\.43\.0\.\d+\/24 /);
});

test('what is not to be asked is refused by name', async () => {
  const refused = (request: object, path: string) =>
    expect(client.listFleet('hears', request)).rejects.toMatchObject({
      code: 'INVALID_REQUEST',
      details: { path },
    });
  await refused({ state: 'attached' }, 'state');
  await refused({ cursor: 'e' }, 'cursor');
  await refused({ cursor: 'volt0/e/f' }, 'cursor');
  await refused({ network: 'UPPER' }, 'network');
  await expect(client.list('hears', { cursor: 'volt0/e' })).rejects.toMatchObject({
    details: { path: 'cursor' },
  });
});

test('while the ledger is away, and empty, it is listed as it was, and since when', async () => {
  const all = ['other/d on h1', 'volt0/e on h1', 'volt0/f on h1', 'volt0/g on h1'];
  await untilListed('deaf', all);
  await redis.kill();
  await until('it says so', async () => {
    const answer = await client.listFleet('deaf', {});
    expect(textOf(answer)).toEqual(all);
    const { network, asOf, code } = answer.behind[0] ?? {};
    return network === 'other' && code === 'STORE_UNAVAILABLE' && Date.parse(asOf ?? '') > 0;
  });
  // Of what it never followed it knows nothing.
  await expect(client.listFleet('deaf', { network: 'never' })).rejects.toMatchObject({
    code: 'STORE_UNAVAILABLE',
  });
  await redis.restart();
  await until('it is whole again', async () => {
    const answer = await client.listFleet('deaf', {});
    expect(textOf(answer)).toEqual(all);
    return answer.behind.length === 0;
  });
  await until('h1 may attach again', async () => (await attach('h')).replayed || true);
  for (const at of ['deaf', 'hears']) await untilListed(at, [...all, 'volt0/h on h1']);
});
