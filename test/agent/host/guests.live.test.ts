import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { guestFolder } from '../../../deploy/guest/qemu.ts';
import { until } from '../../support/agent.ts';
import { VOLTNET } from '../../support/guest.ts';
import { addNamespace, ip, only, removeNamespace } from '../../support/kernel.ts';
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
const CLOUD_INIT = fileURLToPath(new URL('../../support/cloud-init.sh', import.meta.url));
const BOTH = {
  network: 'both',
  subnet: '10.44.0.0/24',
  gateway: '10.44.0.1',
  ipv6: { subnet: 'fd44::/64', gateway: 'fd44::1' },
  routes: [{ to: 'fd99::/48', via: 'fd44::2' }],
};
// As its unit starts it. Where sysfs is read-only networkd does not wait for udevd; the signal at the parent's death comes last,
// since a change of user takes it away.
const NETWORKD = [
  ...['sh', '-c', 'mount -o remount,ro /sys && exec "$@"', 'sh', 'setpriv'],
  ...['--reuid', 'systemd-network', '--regid', 'systemd-network', '--clear-groups'],
  ...['--inh-caps', '+net_admin,+net_raw', '--ambient-caps', '+net_admin,+net_raw', '--'],
  ...dyingWithParent(['/lib/systemd/systemd-networkd']).flat(),
];
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
    `voltnet attach --id ${id} --workload vm-${id} --kind vm ${flags.includes('--network') ? '' : '--network volt0'} ${flags}`,
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

  describe('a seed of NoCloud', () => {
    /** What cloud-init itself makes of it for a guest, as one text. */
    const converted = (renderer: string): string => {
      const root = execFileSync('sh', [CLOUD_INIT], { encoding: 'utf8' }).trim();
      const words = ['-p', 'seed/network-config', '-k', 'yaml', '-d', 'made', '-D', 'debian'];
      const { status, stderr } = spawnSync(
        '/usr/bin/python3',
        ['-m', 'cloudinit.cmd.main', 'devel', 'net-convert', ...words, '-O', renderer],
        {
          cwd: folder,
          env: { ...env, PYTHONPATH: join(root, 'usr/lib/python3/dist-packages') },
          encoding: 'utf8',
        },
      );
      if (status !== 0) throw new Error(stderr);
      return shell('find made -type f | xargs cat; rm -r made').stdout;
    };

    test('is what cloud-init takes for the address, the gateway and the DNS server', () => {
      type('How the guest gets its addresses', 0);
      const networkd = converted('networkd');
      for (const line of [
        'Address=10.42.0.10/24',
        'Gateway=10.42.0.1',
        'DNS=10.42.0.1',
        'Name=eth0',
      ])
        expect(networkd).toContain(`${line}\n`);
      expect(converted('eni')).toMatch(/ address 10\.42\.0\.10\/24\n[^]* gateway 10\.42\.0\.1\n/);
      expect(converted('netplan')).toContain('- 10.42.0.10/24\n');
    });

    test('has both families, their default routes and other routes', async () => {
      await stack.client.putNetwork(BOTH);
      attach('other', '--network both');
      const { stdout } = shell('voltnet guest-config other | tee seed/network-config');
      expect(stdout).toContain('gateway6');
      const networkd = converted('networkd');
      for (const line of ['Gateway=10.44.0.1', 'Gateway=fd44::1', 'Destination=fd99::/48'])
        expect(networkd).toContain(`${line}\n`);
      expect(networkd).toMatch(/^Address=fd44::[0-9a-f:]+\/64$/m);
      expect(networkd).not.toContain('::/64\n\nGateway');
      expect(converted('eni')).toContain('gateway fd44::1\n');
    });
  });

  test('files of an image', () => {
    type('How the guest gets its addresses', 1);
    expect(written('image/etc/systemd/network/10-nic.network')).toContain('Address=10.42.0.10/24');
    expect(written('image/etc/network/interfaces')).toContain('address 10.42.0.10\n');
  });

  test('a file by which systemd-networkd configures a NIC', async () => {
    await stack.client.putNetwork(BOTH);
    attach('other', '--network both');
    const { attachment } = await stack.client.get(stack.host, { id: 'other' });
    addNamespace('guest');
    ip('link', 'add', 'outside', 'type', 'veth', 'peer', 'name', 'nic', 'netns', 'guest');
    ip('-n', 'guest', 'link', 'set', 'nic', 'address', attachment.mac);
    ip('link', 'set', 'outside', 'up');
    mkdirSync('/run/systemd/network', { recursive: true });
    const { stdout } = shell('voltnet guest-config other --format networkd');
    writeFileSync('/run/systemd/network/10-nic.network', stdout);
    shell('mkdir -p /run/systemd/netif && chown -R systemd-network: /run/systemd/netif');
    const networkd = spawn(requireTool('ip'), ['netns', 'exec', 'guest', ...NETWORKD]);
    try {
      const addresses = (): string[] =>
        only(ip('-n', 'guest', 'addr', 'show', 'nic')).addr_info.map(
          ({ local, prefixlen }) => `${local}/${prefixlen}`,
        );
      const routes = (family: string): string[] =>
        ip('-n', 'guest', family, 'route', 'show', 'default').map(({ gateway }) => String(gateway));
      await until('networkd has configured it', () =>
        attachment.addresses.every(({ address }) => addresses().includes(address)),
      );
      await until(
        'the default routes are there',
        () => routes('-4').length + routes('-6').length === 2,
      );
      expect([...routes('-4'), ...routes('-6')]).toEqual(['10.44.0.1', 'fd44::1']);
      expect(only(ip('-n', 'guest', 'link', 'show', 'nic'))['mtu']).toBe(attachment.device?.mtu);
      expect(ip('-n', 'guest', '-6', 'route', 'show', 'fd99::/48')).toHaveLength(1);
    } finally {
      const ended = once(networkd, 'exit');
      networkd.kill('SIGKILL');
      await ended;
      removeNamespace('guest');
    }
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
