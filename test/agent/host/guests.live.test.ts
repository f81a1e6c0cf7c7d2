import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { guestFolder } from '../../../deploy/guest/qemu.ts';
import { until } from '../../support/agent.ts';
import { VOLTNET } from '../../support/guest.ts';
import { openPage } from '../../support/page.ts';
import { type Stack, startStack, VOLT0 } from '../../support/stack.ts';
import { dyingWithParent, requireTool } from '../../support/tools.ts';

// The commands of docs/guests.md, as they stand there. QEMU and its guest are real. Firecracker and Cloud Hypervisor are stubs
// (test/support/vmms/stub.py), which open a TAP as these do, and ask the gateway for its MAC through it.

const page = openPage('guests.md');
const VMMS = fileURLToPath(new URL('../../support/vmms', import.meta.url));
// A jailer makes a /dev/net/tun that its user may open; this machine's may be root's.
const AS_IN_JAIL = '--inh-caps +dac_override --ambient-caps +dac_override';
const WITH_DNS = { ...VOLT0, dns: { servers: ['10.42.0.1'] } };
/** Whoever attached with `--owner`. */
const OWNER = 4711;

let stack: Stack;
let folder: string;
let env: Record<string, string | undefined>;

beforeAll(async () => {
  requireTool('qemu-system-x86_64');
  requireTool('jq');
  stack = await startStack({ networks: [WITH_DNS] });
  folder = mkdtempSync(join(tmpdir(), 'volt-test-guests-'));
  // Another user has to get to the stubs' configuration.
  chmodSync(folder, 0o755);
  for (const name of ['vmlinuz', 'initrd'])
    symlinkSync(join(guestFolder(), name), join(folder, name));
  env = {
    ...process.env,
    PATH: `${VMMS}:${dirname(VOLTNET)}:${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`,
    VOLT_NET_NATS_URL: stack.nats.url,
    VOLT_NET_RUNTIME_DIR: stack.agent.runtimeDir,
    VOLT_NET_HOST: stack.host,
  };
  type('A TAP');
});
afterAll(async () => {
  rmSync(folder, { recursive: true });
  await stack[Symbol.asyncDispose]();
});
afterEach(async () => {
  await stack.client.detach(stack.host, { id: 'other' });
  await stack.gone('other');
});

interface Said {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

const shell = (script: string): Said =>
  spawnSync('/bin/sh', ['-euc', script], { cwd: folder, env, encoding: 'utf8' });

/** Types commands of the page, which have to succeed. */
function type(chapter: string, index = 0): string {
  const commands = page.commandsOf(chapter, index);
  const { status, stdout, stderr } = shell(commands);
  if (status !== 0) throw new Error(`${commands}\nended with ${status}:\n${stdout}${stderr}`);
  return stdout;
}

const attach = (id: string, flags = ''): void => {
  const { status, stderr } = shell(
    `voltnet attach --id ${id} --workload vm-${id} --kind vm --network volt0 ${flags}`,
  );
  if (status !== 0) throw new Error(stderr);
};

/** A command of the page for another attachment than `web`. */
const typed = (chapter: string, index: number): string =>
  page.commandsOf(chapter, index).replaceAll(/\bweb\b/g, 'other');

/** Runs QEMU as the page has it until its guest has tried to reach its gateway; returns its console. */
async function bootQemu(command: string): Promise<string> {
  // `exec`: it dies with the test.
  const [program, words] = dyingWithParent(['sh', '-euc', `exec ${command}`]);
  const child: ChildProcess = spawn(program, words, {
    cwd: folder,
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  child.stdout?.on('data', (chunk: Buffer) => (output += chunk.toString()));
  child.stderr?.on('data', (chunk: Buffer) => (output += chunk.toString()));
  const ended = once(child, 'exit');
  try {
    await until(
      'the guest is up',
      () => output.includes('GUEST READY') || child.exitCode !== null,
      150_000,
    );
  } finally {
    child.kill('SIGKILL');
    await ended;
  }
  return output;
}

describe('QEMU', () => {
  test.each([
    ['by descriptor', 0],
    ['by name', 1],
  ])('%s: a guest with the address of ip= reaches its gateway', async (_, index) => {
    const output = await bootQemu(page.commandsOf('QEMU', index));
    expect(output).toContain('inet 10.42.0.10/24');
    expect(output).toContain('GUEST ping 10.42.0.1 answered');
  });

  test('by descriptor, host_mtu is the MTU of the guest', async () => {
    const { attachment } = await stack.client.get(stack.host, { id: 'web' });
    const output = await bootQemu(page.commandsOf('QEMU'));
    expect(output).toContain(`mtu ${attachment.device?.mtu}`);
    expect(output).toContain(`link/ether ${attachment.mac}`);
  });
});

describe('QEMU, as the page says in words', () => {
  test('by descriptor it sees that a TAP has no header', async () => {
    attach('other', '--no-vnet-hdr');
    expect(await bootQemu(typed('QEMU', 0))).toContain('GUEST ping 10.42.0.1 answered');
  });

  test('by name it opens two queues', async () => {
    attach('other', '--queues 2');
    const command = typed('QEMU', 1)
      .replace('downscript=no', 'downscript=no,queues=2')
      .replace('virtio-net-pci,', 'virtio-net-pci,mq=on,vectors=6,')
      .replace('-m 256', '-m 256 -smp 2');
    const output = await bootQemu(command);
    expect(output).toContain('GUEST queues 2');
    expect(output).toContain('GUEST ping 10.42.0.1 answered');
  });
});

describe('Firecracker (a stub)', () => {
  test('by name: frames go both ways', () => {
    expect(JSON.parse(type('Firecracker'))).toMatchObject({
      tap: 'tap-web',
      gatewayAnswered: true,
    });
  });

  test('is kept off while another VMM has the TAP', () => {
    const { status, stderr } = shell(
      `voltnet exec web -- sh -c 'firecracker --config-file web.json'`,
    );
    expect(stderr).toContain('Device or resource busy');
    expect(status).toBe(1);
  });

  test('has no second queue', () => {
    attach('other', '--queues 2');
    expect(shell(typed('Firecracker', 0)).stderr).toContain('Invalid argument');
  });

  test('opens a TAP without header with a header', () => {
    attach('other', '--no-vnet-hdr');
    expect(JSON.parse(shell(typed('Firecracker', 0)).stdout)).toMatchObject({
      gatewayAnswered: true,
    });
  });

  test('as another user needs to be the owner', () => {
    const asUser = (): Said => {
      // The configuration is written by root, and read by the user.
      const script = typed('Firecracker', 0).replace(
        /^firecracker /m,
        `setpriv --reuid ${OWNER} --regid ${OWNER} --clear-groups ${AS_IN_JAIL} -- /usr/bin/python3 - firecracker `,
      );
      return shell(`${script.trimEnd()} <${VMMS}/stub.py`);
    };
    attach('other');
    expect(asUser().stderr).toContain('Operation not permitted');
    shell('voltnet detach other');
    attach('other', `--owner ${OWNER}`);
    const { stdout, stderr } = asUser();
    expect(stderr).toBe('');
    expect(JSON.parse(stdout)).toMatchObject({ gatewayAnswered: true });
  });
});

describe('Cloud Hypervisor (a stub)', () => {
  test('by descriptor, with two, and by name: frames go both ways', () => {
    expect(JSON.parse(type('Cloud Hypervisor', 0))).toMatchObject({
      queues: 1,
      gatewayAnswered: true,
    });
    const two = type('Cloud Hypervisor', 1).trim().split('\n').at(-1) ?? '';
    expect(JSON.parse(two)).toMatchObject({ tap: 'tap-web2', queues: 2, gatewayAnswered: true });
    expect(JSON.parse(type('Cloud Hypervisor', 2))).toMatchObject({
      queues: 1,
      gatewayAnswered: true,
    });
  });

  test('by name refuses another number of queues than the TAP has', () => {
    attach('other', '--queues 2');
    expect(shell(typed('Cloud Hypervisor', 2)).stderr).toContain('MultiQueueNoDeviceSupport');
    const four = page.commandsOf('Cloud Hypervisor', 2).replace(/mac=/, 'num_queues=4,mac=');
    expect(shell(four).stderr).toContain('MultiQueueNoTapSupport');
  });

  test('by descriptor gets nothing of a TAP without header', () => {
    attach('other', '--no-vnet-hdr');
    const { stdout, stderr } = shell(typed('Cloud Hypervisor', 0));
    expect(stderr).toBe('');
    expect(JSON.parse(stdout)).toMatchObject({ gatewayAnswered: false });
  });
});

describe('what a guest is given', () => {
  const written = (name: string): string => readFileSync(join(folder, name), 'utf8');

  test('a seed of NoCloud', () => {
    type('How the guest gets its addresses', 0);
    expect(written('seed/network-config')).toContain('addresses: ["10.42.0.10/24"]');
  });

  test('files of an image', () => {
    type('How the guest gets its addresses', 1);
    expect(written('image/etc/systemd/network/10-nic.network')).toContain('Address=10.42.0.10/24');
    expect(written('image/etc/network/interfaces')).toContain('address 10.42.0.10\n');
  });

  test('none of what does not exist: an unknown id, or format', () => {
    expect(shell('voltnet guest-config nobody')).toMatchObject({ status: 4, stdout: '' });
    expect(shell('voltnet guest-config web --format dhcp')).toMatchObject({
      status: 2,
      stdout: '',
    });
  });
});

test('every command of the page was typed', () => {
  expect(page.untyped()).toEqual([]);
});
