import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { connect, headers } from 'nats';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { VoltNetworkClient } from '#protocol/client.ts';
import { type RunningAgent, startAgent, until } from '../support/agent.ts';
import { type Server, startNats, startRedis } from '../support/servers.ts';
import { VOLT0 } from '../support/stack.ts';

// An agent whose NATS user has the rights that docs/operating.md lists, and no other: all of it works, once an
// administrator has run `voltnet setup`.

const VOLTNET = new URL('../../deploy/bin/voltnet', import.meta.url).pathname;
const DOCUMENTED = new URL('../../docs/operating.md', import.meta.url);

/** The rights of the documentation, for host h1. */
function rights(): string {
  const text = readFileSync(DOCUMENTED, 'utf8');
  const block = /```nats\n([\s\S]*?)```/.exec(text)?.[1];
  if (block === undefined) throw new Error('the rights are not documented');
  return block;
}

let nats: Server;
let redis: Server;
let agent: RunningAgent | undefined;

/** Whoever brings no password is this user. */
const config = (user: 'admin' | 'agent'): string => `
authorization { users: [
  { user: admin, password: secret }
  { user: agent, password: none, permissions: { ${rights()} } }
] }
no_auth_user: ${user}
`;

const setup = (...hosts: string[]) =>
  spawnSync(VOLTNET, ['setup', '--nats', nats.url, '--json', ...hosts], { encoding: 'utf8' });

beforeAll(async () => {
  [nats, redis] = await Promise.all([startNats({ config: config('admin') }), startRedis()]);
});
afterAll(async () => {
  await agent?.stop();
  await Promise.all([nats.stop(), redis.stop()]);
});

test('an administrator makes streams and consumers, once', () => {
  const { stdout, stderr } = setup('h1', 'h2');
  expect(stderr).toBe('');
  expect(JSON.parse(stdout)).toMatchObject({
    made: [
      { name: 'VOLT_NET_EVENTS', outcome: 'made' },
      { name: 'VOLT_NET_JOBS', outcome: 'made' },
      { name: 'agent-h1', outcome: 'made' },
      { name: 'agent-h2', outcome: 'made' },
    ],
  });
  const again = JSON.parse(setup('h1').stdout) as { made: { outcome: string }[] };
  expect(again.made.map(({ outcome }) => outcome)).toEqual(['there', 'there', 'there']);
  expect(setup('no.host')).toMatchObject({ status: 2 });
});

test('requests, jobs and events work with the rights that are documented', async () => {
  writeFileSync(join(nats.folder, 'nats.conf'), config('agent'));
  await nats.restart();
  expect(setup('h1').stderr).toContain('UNAUTHORIZED');
  agent = await startAgent({ config: { nats: { url: nats.url }, redis: { url: redis.url } } });
  await agent.ready();
  const connection = await connect({ servers: nats.url, user: 'admin', pass: 'secret' });
  const client = new VoltNetworkClient({ connection, headers });
  await client.putNetwork({ ...VOLT0 });
  const vm = { workload: 'vm-one', kind: 'vm', network: 'volt0' } as const;
  await client.attach('h1', { id: 'asked', ...vm });
  await client.submitAttach('h1', { id: 'job', ...vm, workload: 'vm-two', requestId: 'r-1' });
  await until('the job is done', async () => (await client.list('h1')).attachments.length === 2);
  await client.submitDetach('h1', { id: 'job', requestId: 'r-2' });
  await client.detach('h1', { id: 'asked' });
  await until('both are gone', async () => (await client.list('h1')).attachments.length === 0);
  expect((await client.checkLedger({})).inSync).toBe(true);
  await until('all events are out', async () => (await agent?.health())?.['eventsPending'] === 0);
  const manager = await connection.jetstreamManager();
  await until('the queue is empty', async () => {
    return (await manager.streams.info('VOLT_NET_JOBS')).state.messages === 0;
  });
  expect(agent.output()).not.toContain('Permissions Violation');
  await connection.close();
});
