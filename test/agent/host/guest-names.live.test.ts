import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { bareAddresses, dhclient, dig, inside } from '../../support/asking.ts';
import { attachBox, detachBox } from '../../support/boxes.ts';
import { addNamespace } from '../../support/kernel.ts';
import { type Stack, startStack } from '../../support/stack.ts';

// Names of networks and of workloads that mean something else to dnsmasq, and networks of one family.

const served = { dhcp: true, dns: { names: true }, reuseDelaySeconds: 0 } as const;
const NETWORKS = [
  { network: 'odd-net_1', subnet: '10.51.0.0/24', gateway: '10.51.0.1', ...served },
  { network: 'gs-6', ipv6: { subnet: 'fd51:6::/64', gateway: 'fd51:6::1' }, ...served },
  {
    network: 'gs-112',
    subnet: '10.51.2.0/28',
    gateway: '10.51.2.14',
    ipv6: { subnet: 'fd51:112::5:0/112', gateway: 'fd51:112::5:1' },
    ...served,
  },
  { network: 'gs-off', subnet: '10.51.3.0/24', gateway: '10.51.3.1' },
];

let stack: Stack;

beforeAll(async () => {
  stack = await startStack({ networks: NETWORKS });
  await attach('asker', { network: 'odd-net_1' });
});
afterAll(() => stack[Symbol.asyncDispose]());

const attach = (
  id: string,
  more: Partial<AttachRequest> & { network: string },
): Promise<Attachment> => attachBox(stack, id, more);
const detach = (id: string): Promise<void> => detachBox(stack, id);

describe('a host name', () => {
  let number = 0;
  test.each([
    // Words of dnsmasq's dhcp-host, and what it takes for the time of a lease.
    ['ignore', 'ignore'],
    ['infinite', 'infinite'],
    ['12h', '12h'],
    ['3600', '3600'],
    ['1w', '1w'],
    ['Web.Front-End', 'web'],
    ['10.51.0.9', '10'],
    [`${'a'.repeat(63)}.b`, 'a'.repeat(63)],
  ])('%s is told by DHCP and answered by DNS', async (hostname, told) => {
    number += 1;
    const id = `named${number}`;
    const { addresses } = await attach(id, { network: 'odd-net_1', hostname });
    const [address = ''] = bareAddresses({ addresses });
    const lease = await dhclient(id);
    expect(lease).toMatchObject({
      'fixed-address': address,
      'host-name': `"${told}"`,
      'dhcp-lease-time': '3600',
    });
    const name = `${hostname}.odd-net_1.internal`;
    await until('the name is known', () => dig('asker', '10.51.0.1', name) === address);
    expect(dig('asker', '10.51.0.1', name.toUpperCase())).toBe(address);
    expect(dig('asker', '10.51.0.1', '-x', address).toLowerCase()).toBe(`${name.toLowerCase()}.`);
    await detach(id);
    await until('the name is gone', () => dig('asker', '10.51.0.1', name) === '');
  });

  test('of two workloads leads to both, and back to each until it goes', async () => {
    const both = await Promise.all(
      ['twin1', 'twin2'].map((id) => attach(id, { network: 'odd-net_1', hostname: 'twin' })),
    );
    const addresses = both.flatMap(bareAddresses);
    const name = 'twin.odd-net_1.internal';
    const answer = (): string[] => dig('asker', '10.51.0.1', name).split('\n').toSorted();
    await until('both are known', () => answer().length === 2);
    expect(answer()).toEqual(addresses.toSorted());
    for (const id of ['twin1', 'twin2']) {
      expect(await dhclient(id)).toMatchObject({ 'host-name': '"twin"' });
    }
    await detach('twin1');
    await until('one is gone', () => answer().join() === addresses[1]);
    expect(dig('asker', '10.51.0.1', '-x', addresses[0] ?? '')).toBe('');
    expect(dig('asker', '10.51.0.1', '-x', addresses[1] ?? '')).toBe(`${name}.`);
    await detach('twin2');
  });

  test('that is too long with the zone behind it is refused', async () => {
    const label = 'a'.repeat(60);
    const hostname = [label, label, label, label].join('.');
    addNamespace('long');
    const asked = {
      id: 'long',
      workload: 'container-long',
      kind: 'container',
      network: 'odd-net_1',
      netns: '/run/netns/long',
      hostname,
    } as const;
    await expect(stack.client.attach(stack.host, asked)).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      details: { path: 'hostname' },
    });
    const { attachment } = await stack.client.attach(stack.host, { ...asked, network: 'gs-off' });
    expect(attachment.state).toBe('attached');
    await detach('long');
  });
});

describe('a network', () => {
  test('of IPv6 alone advertises, hands out and answers', async () => {
    const { addresses, dns } = await attach('six', { network: 'gs-6', hostname: 'six' });
    const [address = ''] = bareAddresses({ addresses });
    expect(dns.servers).toEqual(['fd51:6::1']);
    expect(await dhclient('six', 6)).toMatchObject({
      iaaddr: address,
      'dhcp6.name-servers': 'fd51:6::1',
    });
    await until('named', () => dig('six', 'fd51:6::1', 'six.gs-6.internal', 'AAAA') === address);
    expect(dig('six', 'fd51:6::1', '-x', address)).toBe('six.gs-6.internal.');
    await detach('six');
  });

  test('with a /28 and a /112 does, too', async () => {
    const own = await attach('narrow', { network: 'gs-112', hostname: 'narrow' });
    const [own4 = '', own6 = ''] = bareAddresses(own);
    expect(await dhclient('narrow')).toMatchObject({
      'fixed-address': own4,
      'subnet-mask': '255.255.255.240',
    });
    expect((await dhclient('narrow', 6))?.['iaaddr']).toBe(own6);
    await until('named', () => dig('narrow', '10.51.2.14', 'narrow.gs-112.internal') === own4);
    expect(dig('narrow', '10.51.2.14', '-x', own4)).toBe('narrow.gs-112.internal.');
    expect(dig('narrow', 'fd51:112::5:1', '-x', own6)).toBe('narrow.gs-112.internal.');
    await detach('narrow');
  });

  test('is answered for by its own gateway alone, over UDP and TCP', async () => {
    await attach('other', { network: 'gs-112' });
    inside('other', ['ip', 'route', 'replace', 'default', 'via', '10.51.2.14']);
    const { addresses } = await attach('hidden', { network: 'odd-net_1', hostname: 'hidden' });
    const [address] = bareAddresses({ addresses });
    const name = 'hidden.odd-net_1.internal';
    await until('named', () => dig('asker', '10.51.0.1', name) === address);
    expect(dig('asker', '10.51.0.1', '+tcp', name)).toBe(address);
    // It reaches that gateway, so that an answer would reach it.
    expect(inside('other', ['ping', '-c', '1', '-W', '5', '10.51.0.1'])).toContain('1 received');
    expect(dig('other', '10.51.0.1', name)).toBe('');
    expect(dig('other', '10.51.0.1', '+tcp', name)).toBe('');
    await detach('hidden');
    await detach('other');
  });
});
