import { execFile, execFileSync, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { Ledger } from '#ipam-store/ledger.ts';
import { requestSeqpacket } from '#native/unix.ts';
import { openLedger } from '../../ipam-store/fixture.ts';
import { AGENT, type RunningAgent, startAgent, until } from '../../support/agent.ts';
import { claimFrom } from '../../support/claim.ts';
import { deviceNames } from '../../support/kernel.ts';
import { type Machine, onMachine } from '../../support/machine.ts';
import { type Stack, startStack } from '../../support/stack.ts';

// Machines of one image, machines that were given another name, and state folders that were copied.

const VOLTNET = new URL('../../../deploy/bin/voltnet', import.meta.url).pathname;

const hex = (): string => randomBytes(16).toString('hex');
const FIRST = { machineId: hex(), bootId: crypto.randomUUID(), hostName: 'one' };

let open: AsyncDisposableStack;
let stack: Stack;
let ledger: Ledger;

/** The host of `FIRST`, under the name that its machine has. */
async function startFirst(): Promise<void> {
  stack = open.use(
    await startStack({
      config: { host: undefined, suspectAfterSeconds: 3 },
      wrap: onMachine(FIRST, open),
    }),
  );
  ledger = await openLedger(stack.redis.url);
  open.defer(() => ledger.close());
}

beforeEach(() => {
  open = new AsyncDisposableStack();
});
afterEach(async () => {
  await open.disposeAsync();
  for (const name of deviceNames()) {
    if (name !== 'lo') execFileSync('ip', ['link', 'delete', name]);
  }
});

const vm = (id: string): Parameters<Stack['client']['attach']>[1] => ({
  id,
  workload: `vm-${id}`,
  kind: 'vm',
  network: 'volt0',
});

/** Another machine on the same servers, in the same network namespace, with tables of its own. */
async function startOther(machine: Partial<Machine>, config: object = {}): Promise<RunningAgent> {
  const agent = await startAgent({
    config: {
      host: undefined,
      nats: { url: stack.nats.url },
      redis: { url: stack.redis.url },
      suspectAfterSeconds: 3,
      nftablesTable: 'volt_other',
      ...config,
    },
    wrap: onMachine({ ...FIRST, bootId: crypto.randomUUID(), ...machine }, open),
  });
  open.defer(async () => void (await agent.stop()));
  return agent;
}

function copied(stateDir: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-copy-'));
  open.defer(() => rmSync(folder, { recursive: true, force: true }));
  const copy = join(folder, 'state');
  cpSync(stateDir, copy, { recursive: true });
  return copy;
}

const reasonOf = async (agent: RunningAgent): Promise<string> =>
  String((await agent.health())['requests']);

const refusedAsClone = (agent: RunningAgent): Promise<void> =>
  until('it is refused', async () =>
    (await reasonOf(agent)).includes('two machines with one machine id'),
  );

const settle = async ({ socketPath }: RunningAgent): Promise<unknown> =>
  JSON.parse((await requestSeqpacket(socketPath, Buffer.from('{"op":"settle"}'))).bytes.toString());

test('two machines copied from one, state folder and all: nothing ends until an operator decides', async () => {
  await startFirst();
  const first = stack.agent;
  await stack.client.attach('one', vm('kept'));
  const second = await startOther({}, { stateDir: copied(first.stateDir) });
  await Promise.all([refusedAsClone(first), refusedAsClone(second)]);
  await expect(stack.client.detach('one', { id: 'kept' })).rejects.toMatchObject({
    code: 'AGENT_UNAVAILABLE',
  });
  for (const agent of [first, second]) {
    const asked = { op: 'request', operation: 'detach', body: { id: 'kept' } };
    const { body } = await claimFrom(agent, asked);
    expect(body).toMatchObject({ error: { code: 'HOST_CONFLICT' } });
  }
  const { hosts } = await stack.client.ledgerHosts();
  expect(hosts).toMatchObject([
    { host: 'one', leases: 1, clones: [expect.any(String), expect.any(String)] },
  ]);
  // An agent that starts anew is refused as the one before it, also while nobody can be asked.
  await stack.redis.kill();
  await first.restart();
  await until('it knows', async () => (await reasonOf(first)).includes('HOST_CONFLICT'));
  await stack.redis.restart();
  await refusedAsClone(first);
  expect(deviceNames()).toContain('tap-kept');

  expect(await settle(first)).toEqual({ host: 'one', settled: true });
  await first.ready();
  // This Redis has kept nothing: who is refused re-asserts nothing, so the lease is back with the decision at the latest.
  await until('it has its lease', async () => (await ledger.getLease('kept')) !== null);
  expect(deviceNames()).toContain('tap-kept');
  await until('the second alone is refused', async () =>
    (await reasonOf(second)).includes('an operator has decided'),
  );
  await stack.client.attach('one', vm('new'));
  expect((await first.health())['attachments']).toBe(2);
  expect(await stack.client.detach('one', { id: 'kept' })).toMatchObject({ releasing: true });
  await until('it is released', async () => (await ledger.getLease('kept')) === null);
});

test('a machine of one image with a state folder of its own is refused, and the first goes on', async () => {
  await startFirst();
  await stack.client.attach('one', vm('kept'));
  const second = await startOther({});
  await until('it is refused', async () => (await reasonOf(second)).includes('another agent'));
  for (let n = 0; n < 8; n += 1) {
    expect((await stack.client.get('one', { id: 'kept' })).attachment.id).toBe('kept');
  }
  expect(await ledger.getLease('kept')).not.toBeNull();
});

test('a reboot within a moment waits until the boot before it is silent, and serves', async () => {
  await startFirst();
  await stack.client.attach('one', vm('kept'));
  const { stateDir } = stack.agent;
  await stack.agent.kill();
  execFileSync('ip', ['link', 'delete', 'tap-kept']);
  const again = await startOther({}, { stateDir });
  await again.ready();
  await until('its VM has its device', () => deviceNames().includes('tap-kept'));
  expect((await ledger.getLease('kept'))?.host).toBe('one');
});

test('a machine that was given another name goes on under its recorded id, and says so', async () => {
  await startFirst();
  await stack.client.attach('one', vm('kept'));
  const { stateDir, runtimeDir } = stack.agent;
  await stack.agent.kill();
  const same = { bootId: FIRST.bootId, hostName: 'two.example.org' };
  const again = await startOther(same, { stateDir, runtimeDir });
  await again.ready();
  expect(await again.health()).toMatchObject({
    host: 'one',
    hostName: 'two_example_org',
    attachments: 1,
  });
  expect(again.output()).toMatch(/goes on as host one.*voltnet host rename two_example_org/);
  expect(readFileSync(join(runtimeDir, 'host'), 'utf8')).toBe('one\n');
  expect(await stack.client.detach('one', { id: 'kept' })).toMatchObject({ releasing: true });
});

/** The agent as it starts and ends at once, with what it says. */
function started(machine: Machine, config: object): { status: number | null; stderr: string } {
  const folder = mkdtempSync('/run/refused-');
  const file = join(folder, 'agent.json');
  writeFileSync(file, JSON.stringify({ runtimeDir: join(folder, 'runtime'), ...config }));
  const command = [...onMachine(machine, open), AGENT, '--config', file];
  const { status, stderr } = spawnSync('env', command, { encoding: 'utf8', timeout: 30_000 });
  return { status, stderr };
}

const recordOf = (host: string): string => JSON.stringify({ attachment: { host } });

test('a state folder of another machine or host is refused before anything is made', async () => {
  const stateDir = mkdtempSync('/run/state-');
  const identity = join(stateDir, 'identity');
  const put = (more: object): void =>
    writeFileSync(
      identity,
      JSON.stringify({
        version: 1,
        agentId: 'a',
        machineId: FIRST.machineId,
        host: 'one',
        ...more,
      }),
    );
  const before = deviceNames();

  put({ machineId: hex() });
  const copy = started(FIRST, { stateDir });
  expect(copy).toMatchObject({ status: 78, stderr: expect.stringContaining('on another machine') });
  expect(copy.stderr).toMatch(/If the folder was copied, empty it/);
  expect(copy.stderr).toMatch(/voltnet host rename one/);

  put({});
  const named = started(FIRST, { stateDir, host: 'two' });
  expect(named).toMatchObject({
    status: 78,
    stderr: expect.stringContaining('voltnet host rename two'),
  });

  put({ renamingTo: 'three' });
  const half = started(FIRST, { stateDir });
  expect(half).toMatchObject({
    status: 78,
    stderr: expect.stringContaining('voltnet host rename three'),
  });

  writeFileSync(identity, 'no JSON');
  const broken = started(FIRST, { stateDir });
  expect(broken).toMatchObject({ status: 78, stderr: expect.stringContaining('cannot be read') });

  // As an agent before 1.7 has left it.
  rmSync(identity);
  execFileSync('mkdir', [join(stateDir, 'attachments')]);
  writeFileSync(join(stateDir, 'attachments', 'kept.json'), recordOf('elsewhere'));
  const records = started(FIRST, { stateDir });
  expect(records).toMatchObject({
    status: 78,
    stderr: expect.stringContaining('a record of host elsewhere'),
  });
  expect(existsSync(identity)).toBe(false);
  expect(existsSync(join(stateDir, 'ledger.json'))).toBe(false);
  expect(deviceNames()).toEqual(before);
});

/** `voltnet host rename` on a machine, with the agent's configuration. */
function renamed(machine: Machine, configFile: string, to: string): Promise<Ended> {
  const command = [
    ...onMachine(machine, open),
    VOLTNET,
    'host',
    'rename',
    to,
    '--config',
    configFile,
  ];
  const { promise, resolve } = Promise.withResolvers<Ended>();
  execFile('env', command, { timeout: 50_000 }, (error, _stdout, stderr) =>
    resolve({ code: error === null ? 0 : error.code, stderr }),
  );
  return promise;
}

interface Ended {
  readonly code: unknown;
  readonly stderr: string;
}

test('a host is renamed on purpose: leases, records and devices are those of the new id', async () => {
  await startFirst();
  const { agent, client } = stack;
  const { attachment } = await client.attach('one', vm('kept'));
  const running = await renamed(FIRST, agent.configFile, 'two');
  expect(running).toMatchObject({ code: 5, stderr: expect.stringContaining('stop it first') });
  await agent.kill();
  const half = {
    ...JSON.parse(readFileSync(join(agent.stateDir, 'identity'), 'utf8')),
    renamingTo: 'two',
  };
  // Killed before it had done anything but say so.
  writeFileSync(join(agent.stateDir, 'identity'), JSON.stringify(half));
  const other = await renamed(FIRST, agent.configFile, 'three');
  expect(other).toMatchObject({
    code: 2,
    stderr: expect.stringContaining('voltnet host rename two'),
  });
  expect(await renamed(FIRST, agent.configFile, 'two')).toMatchObject({ code: 0 });
  await agent.restart();
  await agent.ready();
  expect(await agent.health()).toMatchObject({ host: 'two', hostName: 'one', attachments: 1 });
  const after = await client.get('two', { id: 'kept' });
  expect(after.attachment).toEqual({ ...attachment, host: 'two' });
  expect((await client.check('two', {})).differences).toEqual([]);
  expect((await client.checkLedger({})).differences).toEqual([]);
  expect((await client.ledgerHosts()).hosts).toMatchObject([{ host: 'two', leases: 1 }]);
  expect(await client.detach('two', { id: 'kept' })).toMatchObject({ releasing: true });
  await until('it is released', async () => (await ledger.getLease('kept')) === null);
});

test('a machine that was refused is given a name of its own, and serves beside the first', async () => {
  await startFirst();
  await stack.client.attach('one', vm('kept'));
  const machine = { ...FIRST, bootId: crypto.randomUUID() };
  const second = await startOther(machine);
  await until('it is refused', async () => (await reasonOf(second)).includes('another agent'));
  await second.kill();
  expect(await renamed(machine, second.configFile, 'other')).toMatchObject({ code: 0 });
  await second.restart();
  await second.ready();
  await stack.client.attach('other', vm('own'));
  await stack.client.get('one', { id: 'kept' });
  const { leases } = await ledger.listLeases({});
  expect(leases.map(({ id, host }) => `${id} ${host}`).toSorted()).toEqual([
    'kept one',
    'own other',
  ]);
});
