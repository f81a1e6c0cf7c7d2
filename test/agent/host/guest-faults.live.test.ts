import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { bareAddresses, dhclient, dig } from '../../support/asking.ts';
import { attachBox, detachBox } from '../../support/boxes.ts';
import { addNamespace, deviceNames, removeNamespace } from '../../support/kernel.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { dyingWithParent, requireTool } from '../../support/tools.ts';
import { runVoltnet } from '../../support/voltnet.ts';

// What goes wrong around dnsmasq: ports that are another's, kills in the middle, files that are gone, edits, dry runs.

const served = { dhcp: true, dns: { names: true }, reuseDelaySeconds: 0 } as const;
const NETWORK = { network: 'gf0', subnet: '10.57.0.0/24', gateway: '10.57.0.1', ...served };
const ADOPTED = { network: 'gf1', bridge: 'own0', subnet: '10.58.0.0/24', gateway: '10.58.0.1' };

const open = new AsyncDisposableStack();
let stack: Stack;

const run = (words: string): string =>
  execFileSync(requireTool('ip'), words.split(' '), { encoding: 'utf8' });

beforeAll(async () => {
  run('link add own0 type bridge');
  run('link set own0 up');
  run('addr add 10.58.0.1/24 dev own0');
  stack = await startStack({ networks: [NETWORK, { ...ADOPTED, ...served }] });
});
afterAll(async () => {
  await open.disposeAsync();
  await stack[Symbol.asyncDispose]();
});
afterEach(async () => {
  const { attachments } = await stack.client.list(stack.host);
  for (const { id } of attachments) await detach(id);
});

const attach = (id: string, more: Partial<AttachRequest> = {}): Promise<Attachment> =>
  attachBox(stack, id, { network: 'gf0', hostname: id, ...more });
const detach = (id: string): Promise<void> => detachBox(stack, id);

const folders = (): string[] => {
  const folder = join(stack.agent.runtimeDir, 'dnsmasq');
  return existsSync(folder) ? readdirSync(folder) : [];
};
const pidOf = (network: string): number =>
  Number(readFileSync(join(stack.agent.runtimeDir, 'dnsmasq', network, 'state/pid'), 'utf8'));
const nameOf = (id: string, from = id): string => dig(from, '10.57.0.1', `${id}.gf0.internal`);

const conditions = async (): Promise<{ name: string; reason: string }[]> =>
  (await stack.agent.health())['conditions'] as { name: string; reason: string }[];
const unserved = async (): Promise<string | undefined> =>
  (await conditions()).find(({ name }) => name === 'guests-unserved')?.reason;

/** Holds a UDP port of the gateway's address, once somebody lets it. */
function holdPort(address: string, port: number): ChildProcess {
  const script = `
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try:
        s.bind(("${address}", ${port}))
        break
    except OSError:
        pass
print("held", flush=True)
time.sleep(600)`;
  const [program, args] = dyingWithParent([requireTool('python3'), '-c', script]);
  return spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
}

describe('a port of DNS or DHCP that another process has', () => {
  test.each([
    ['DNS', '10.57.0.1', 53],
    ['DHCP', '0.0.0.0', 67],
  ])('%s is told with its holder, and served once it is free', async (_, address, port) => {
    await attach('asks');
    await until('named', () => nameOf('asks') !== '');
    const holder = holdPort(address, port);
    open.defer(() => void holder.kill('SIGKILL'));
    let said = '';
    holder.stdout?.on('data', (chunk: Buffer) => (said += chunk.toString()));
    while (said === '') {
      endDnsmasq('gf0');
      await until('held, or dnsmasq is back', () => said !== '' || isAlive(pidOf('gf0')));
    }
    await until('it is told', async () => {
      const reason = await unserved();
      return reason?.includes(`port ${port} `) === true && reason.includes(`pid ${holder.pid})`);
    });
    holder.kill('SIGKILL');
    await until('it is served again', async () => (await unserved()) === undefined);
    await until('named', () => nameOf('asks') !== '');
    expect(await dhclient('asks')).toBeDefined();
  });
});

function endDnsmasq(network: string): void {
  try {
    process.kill(pidOf(network), 'SIGKILL');
  } catch {
    // It has ended, or is about to begin.
  }
}

const isAlive = (pid: number): boolean => existsSync(`/proc/${pid}`);

describe('an agent that is killed', () => {
  test('right after an attach and a detach leaves what the next one brings to its end', async () => {
    await attach('stays');
    await until('named', () => nameOf('stays') !== '');
    for (let turn = 0; turn < 3; turn += 1) {
      const { addresses } = await attach(`fresh${turn}`);
      await stack.agent.kill();
      await stack.agent.restart();
      await stack.agent.ready();
      const [address] = bareAddresses({ addresses });
      await until('named', () => nameOf(`fresh${turn}`, 'stays') === address);
      expect((await dhclient(`fresh${turn}`))?.['fixed-address']).toBe(address);
      await stack.client.detach(stack.host, { id: `fresh${turn}` });
      await stack.agent.kill();
      await stack.agent.restart();
      await stack.agent.ready();
      await stack.gone(`fresh${turn}`);
      await until('the name is gone', () => nameOf(`fresh${turn}`, 'stays') === '');
      await until('its leases have ended', () => {
        const leases = join(stack.agent.runtimeDir, 'dnsmasq/gf0/state/leases');
        return !readFileSync(leases, 'utf8').includes(address ?? '?');
      });
      expect(readdirSync(join(stack.agent.runtimeDir, 'dnsmasq/gf0/hosts'))).toEqual(['stays']);
    }
  });

  test('while it starts a dnsmasq leaves one, not two', async () => {
    await attach('stays');
    await until('it runs', () => isAlive(pidOf('gf0')));
    for (let turn = 0; turn < 3; turn += 1) {
      endDnsmasq('gf0');
      await stack.agent.kill();
      await stack.agent.restart();
      await stack.agent.ready();
      await until('named', () => nameOf('stays') !== '');
      const conf = `--conf-file=${stack.agent.runtimeDir}/dnsmasq/gf0/conf`;
      const running = readdirSync('/proc').filter((pid) => {
        if (!/^\d+$/.test(pid)) return false;
        try {
          return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(conf);
        } catch {
          return false;
        }
      });
      expect(running).toEqual([String(pidOf('gf0'))]);
    }
  });
});

test('files and folders that somebody removes are back with the next change', async () => {
  await attach('stays');
  await until('named', () => nameOf('stays') !== '');
  rmSync(join(stack.agent.runtimeDir, 'dnsmasq'), { recursive: true });
  await attach('next');
  await until('both are named', () => nameOf('stays') !== '' && nameOf('next') !== '');
  for (const id of ['stays', 'next']) expect(await dhclient(id)).toBeDefined();
});

test('a dry run makes nothing, and the host is as recorded', async () => {
  addNamespace('dry');
  const before = { folders: folders(), devices: deviceNames() };
  const asked = {
    id: 'dry',
    workload: 'container-dry',
    kind: 'container',
    network: 'gf0',
    netns: '/run/netns/dry',
    hostname: 'dry',
  } as const;
  const { operations } = await stack.client.dryRun(stack.host, asked, { timeoutMs: 60_000 });
  expect(operations.length).toBeGreaterThan(0);
  expect({ folders: folders(), devices: deviceNames() }).toEqual(before);
  removeNamespace('dry');
  await attach('stays');
  await until('named', () => nameOf('stays') !== '');
  expect(await stack.client.check(stack.host)).toMatchObject({ inSync: true });
});

test('an adopted bridge serves, and stays when its network goes', async () => {
  const { addresses } = await attach('guest', { network: 'gf1' });
  const [address] = bareAddresses({ addresses });
  expect((await dhclient('guest'))?.['fixed-address']).toBe(address);
  await until('named', () => dig('guest', '10.58.0.1', 'guest.gf1.internal') === address);
  await detach('guest');
  await until('nothing serves it', () => !folders().includes('gf1'));
  expect(deviceNames()).toContain('own0');
});

test('edits of servers, domain and lease time hold from the next question on', async () => {
  await attach('guest');
  const edit = async (keys: object): Promise<void> => {
    const { revision } = await stack.client.getNetwork('gf0');
    await stack.client.putNetwork({ ...NETWORK, ...keys, revision });
  };
  expect(await dhclient('guest')).toMatchObject({
    'dhcp-lease-time': '3600',
    'domain-name-servers': '10.57.0.1',
  });
  await edit({ dhcp: { leaseSeconds: 120 }, dns: { servers: ['192.0.2.1'], domain: 'x.org' } });
  await until('the edit is told', async () => {
    const lease = await dhclient('guest');
    return (
      lease?.['dhcp-lease-time'] === '120' &&
      lease['domain-name-servers'] === '192.0.2.1' &&
      lease['domain-name'] === '"x.org"'
    );
  });
  expect(nameOf('guest')).toBe('');
  await edit({});
  await until('names are back', () => nameOf('guest') !== '');
  expect(await stack.client.check(stack.host)).toMatchObject({ inSync: true });
});

test('clean takes dnsmasq and its folder off the host, while no agent runs', async () => {
  await attach('guest');
  await until('named', () => nameOf('guest') !== '');
  const pid = pidOf('gf0');
  await stack.agent.kill();
  const { configFile } = stack.agent;
  const { exitCode, stderr } = await runVoltnet(
    ['--config', configFile, 'host', 'clean', '--all'],
    {
      env: { VOLT_NET_RUNTIME_DIR: stack.agent.runtimeDir },
    },
  );
  expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 });
  await until('dnsmasq has ended', () => !isAlive(pid));
  expect(folders()).toEqual([]);
  await stack.agent.restart();
  await stack.agent.ready();
});
