import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { bareAddresses, inside, udhcpc } from '../../support/asking.ts';
import { attachBox } from '../../support/boxes.ts';
import { bootGuest } from '../../support/guest.ts';
import { ip, only } from '../../support/kernel.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { dyingWithParent, requireTool } from '../../support/tools.ts';

// Clients that do with an answer what systems do with it: busybox's, systemd-networkd's, and a real guest on a TAP.

const NETWORK = {
  network: 'gc0',
  subnet: '10.53.0.0/24',
  gateway: '10.53.0.1',
  ipv6: { subnet: 'fd53::/64', gateway: 'fd53::1' },
  mtu: 1400,
  dhcp: { leaseSeconds: 600 },
  dns: { names: true, search: ['example.org'] },
  routes: [{ to: '10.9.0.0/16', via: '10.53.0.9' }],
};
const NETWORKD = '/lib/systemd/systemd-networkd';

let stack: Stack;

beforeAll(async () => {
  stack = await startStack({ networks: [NETWORK] });
});
afterAll(() => stack[Symbol.asyncDispose]());

/** A container that has been told nothing: its device is up, and has link-local addresses alone. */
async function attachEmpty(id: string, mtu?: number): Promise<Attachment> {
  const attachment = await attachBox(stack, id, {
    network: 'gc0',
    hostname: `${id}.Sub`,
    ...(mtu !== undefined && { mtu }),
  });
  inside(id, ['ip', 'address', 'flush', 'dev', 'eth0', 'scope', 'global']);
  inside(id, ['ip', '-6', 'route', 'flush', 'default']);
  return attachment;
}

test('busybox gets all of it, with the MTU of its own attachment', async () => {
  const attached = await attachEmpty('busy', 1300);
  expect(udhcpc('busy')).toMatchObject({
    ip: bareAddresses(attached)[0],
    mask: '24',
    router: '10.53.0.1',
    dns: '10.53.0.1',
    hostname: 'busy',
    domain: 'gc0.internal',
    search: 'gc0.internal example.org',
    mtu: '1300',
    lease: '600',
    staticroutes: '10.9.0.0/16 10.53.0.9 0.0.0.0/0 10.53.0.1',
  });
  expect(udhcpc('busy')?.['mtu']).toBe('1300');
});

describe('systemd-networkd', () => {
  let networkd: ChildProcess | undefined;
  afterAll(() => {
    networkd?.kill('SIGKILL');
  });

  test('configures both families as told', async () => {
    const attached = await attachEmpty('net');
    const [own4, own6] = bareAddresses(attached);
    networkd = startNetworkd('net', 'eth0');
    const addresses = (): string[] =>
      only(ip('-n', 'net', 'address', 'show', 'eth0')).addr_info.map(
        ({ local, prefixlen }) => `${local}/${prefixlen}`,
      );
    await until('it has both addresses', () => {
      return addresses().includes(`${own4}/24`) && addresses().includes(`${own6}/128`);
    });
    expect(only(ip('-n', 'net', 'link', 'show', 'eth0'))).toMatchObject({ mtu: 1400 });
    const routes = (): unknown[] =>
      ip('-n', 'net', 'route').map(({ dst, gateway }) => [dst, gateway]);
    await until('it has the routes', () => routes().length >= 3);
    expect(routes()).toContainEqual(['default', '10.53.0.1']);
    expect(routes()).toContainEqual(['10.9.0.0/16', '10.53.0.9']);
    await until('it has a router of IPv6', () =>
      ip('-n', 'net', '-6', 'route', 'show', 'default').some(({ gateway }) =>
        String(gateway).startsWith('fe80:'),
      ),
    );
    const folder = `/proc/${pidOfNetworkd(networkd)}/root/run/systemd/netif`;
    const { ifindex } = only(ip('-n', 'net', 'link', 'show', 'eth0'));
    const lease = readFileSync(`${folder}/leases/${String(ifindex)}`, 'utf8');
    expect(lease).toContain('HOSTNAME=net\n');
    expect(lease).toContain('MTU=1400\n');
    await until('it knows the servers of names', () => {
      const link = readFileSync(`${folder}/links/${String(ifindex)}`, 'utf8');
      if (/^DNS=.*10\.53\.0\.1.*fd53::1/m.test(link) && /^DOMAINS=.*gc0/m.test(link)) return true;
      throw new Error(link);
    });
    // As told it reaches the gateway by both families, whatever its firewall had of it before.
    for (const target of ['10.53.0.1', 'fd53::1']) {
      expect(inside('net', ['ping', '-c', '1', '-W', '5', target])).toContain('1 received');
    }
  });
});

describe('a guest on a TAP', () => {
  test.each([true, false])('with vnetHdr %s is configured by DHCP', async (vnetHdr) => {
    const id = `guest-${vnetHdr}`;
    const { attachment } = await stack.client.attach(stack.host, {
      id,
      workload: `vm-${id}`,
      kind: 'vm',
      network: 'gc0',
      hostname: id,
      tap: { vnetHdr },
    });
    const [own4, own6] = bareAddresses(attachment);
    await using guest = await bootGuest(
      id,
      { queues: 1, ping: '10.53.0.1', ra: true, lookup: `${id}.gc0.internal` },
      { VOLT_NET_RUNTIME_DIR: stack.agent.runtimeDir },
    );
    const said = guest.output();
    expect(said).toContain(`GUEST lease ${own4} from 10.53.0.1 for 600`);
    expect(said).toMatch(
      new RegExp(
        `GUEST name ${id}, mtu 1400, search gc0\\.internal example\\.org nameserver 10\\.53\\.0\\.1 `,
      ),
    );
    expect(said).toMatch(/^default via 10\.53\.0\.1 dev eth0/m);
    expect(said).toMatch(/^10\.9\.0\.0\/16 via 10\.53\.0\.9 dev eth0/m);
    expect(said).toMatch(/^default via fe80:\S+ dev eth0/m);
    expect(said).toContain('GUEST ping 10.53.0.1 answered');
    const [answer] = /GUEST lookup .*/.exec(said) ?? [];
    expect(answer).toContain(`Address: ${own4}`);
    expect(answer).toContain(`Address: ${own6}`);
  });
});

/** networkd with nothing but its own folder, for one device of a namespace. */
function startNetworkd(netns: string, device: string): ChildProcess {
  if (!existsSync(NETWORKD)) throw new Error(`${NETWORKD} is missing: sh deploy/bootstrap.sh test`);
  const unit = [
    `[Match]\nName=${device}`,
    '[Network]\nDHCP=yes\nIPv6AcceptRA=yes\nIPv6LinkLocalAddressGenerationMode=eui64',
    '[DHCPv4]\nUseMTU=yes\nUseDomains=yes',
    '[DHCPv6]\nUseDomains=yes',
    '[IPv6AcceptRA]\nUseDomains=yes\n',
  ].join('\n');
  // Where sysfs is read-only networkd does not wait for udevd.
  const script = [
    'mount -t tmpfs -o mode=755 tmpfs /run',
    'mkdir -p /run/systemd/network /run/systemd/netif/leases /run/systemd/netif/links',
    'printf "%s" "$1" >/run/systemd/network/10-test.network',
    'chown -R systemd-network: /run/systemd/netif',
    'mount -o remount,bind,ro /sys',
    `exec env SYSTEMD_LOG_LEVEL=debug ${NETWORKD}`,
  ].join(' && ');
  const [program, args] = dyingWithParent([
    ...[requireTool('ip'), 'netns', 'exec', netns],
    ...['sh', '-c', script, 'sh', unit],
  ]);
  return spawn(program, args, { stdio: 'ignore' });
}

/** The process itself: what starts it becomes it. */
const pidOfNetworkd = ({ pid }: ChildProcess): number => {
  expect(readdirSync(`/proc/${pid}/root/run/systemd/netif`)).toContain('leases');
  return pid ?? 0;
};
