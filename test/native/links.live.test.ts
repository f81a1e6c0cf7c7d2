import { execFileSync, spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { InterfaceAddress, IpAddress, IpPrefix, MacAddress } from '#protocol/address.ts';
import { Addresses } from '#native/address.ts';
import { KernelError } from '#native/errors.ts';
import { Links, parseLink } from '#native/link.ts';
import { Namespace } from '#native/namespace.ts';
import { NamespaceIds } from '#native/namespace-id.ts';
import { Neighbours } from '#native/neighbour.ts';
import { NetlinkSocket } from '#native/netlink.ts';
import { subscribe } from '#native/netlink-events.ts';
import { Routes } from '#native/route.ts';
import { ruleAddition, ruleRemoval } from '#native/rule.ts';
import { RTM_DELLINK, RTM_NEWLINK, RTNLGRP_LINK } from '#native/rtnetlink.ts';
import { atOnce } from '#native/steps.ts';
import { until } from '../support/agent.ts';
import { bridge, deviceNames, ip, only } from '../support/kernel.ts';
import { requireTool } from '../support/tools.ts';

// The verbs against the kernel, and what they say against what `ip` says.

const socket = NetlinkSocket.open();
const links = new Links(socket);
const addresses = new Addresses(socket);
const routes = new Routes(socket);
const neighbours = new Neighbours(socket);
afterAll(() => socket[Symbol.dispose]());

const mac = MacAddress.parse;

test('a namespace keeps its number, and its devices are found by it, until nobody holds it', async () => {
  const ids = new NamespaceIds(socket);
  using inside = Namespace.create('/run/netns/numbered');
  ids.give(inside);
  ids.give(inside);
  const named = ip('netns', 'list-id').find(({ name }) => name === 'numbered');
  const id = Number(named?.['nsid']);
  expect(ids.list()).toContain(id);
  expect(ids.has(id)).toBe(true);
  links.createBridge({ name: 'lower', mac: mac('02:00:00:00:00:21') });
  const lower = links.indexOf('lower') ?? 0;
  const device = { name: 'mv0', mac: mac('02:00:00:00:00:22'), index: 7_000_001, parent: lower };
  links.createMacvlan({ ...device, kind: 'macvlan', mode: 4, namespace: inside });
  // No path leads there any more.
  Namespace.remove('/run/netns/numbered');
  expect(links.getIn(id, device.index)).toMatchObject({ name: 'mv0', kind: 'macvlan' });
  expect(links.getIn(id, 7_000_002)).toBeNull();
  expect(links.getIn(9_999, device.index)).toBeNull();
  inside.run(() => {
    using socketInside = NetlinkSocket.open();
    for (const text of ['10.9.0.3/32', 'fd00:9::3/128']) {
      new Addresses(socketInside).add({ ifindex: 1, address: InterfaceAddress.parse(text) });
    }
  });
  const held = addresses.listIn(id, 1).map(({ address }) => address.toString());
  expect(held.toSorted()).toEqual(['10.9.0.3/32', 'fd00:9::3/128']);
  expect(addresses.listIn(id, 7_000_002)).toEqual([]);
  expect(addresses.listIn(9_999, 1)).toEqual([]);
  await links.deleteInAsync(id, device.index);
  expect(links.getIn(id, device.index)).toBeNull();
  await links.deleteInAsync(id, device.index);
  await links.deleteInAsync(9_999, device.index);
  inside[Symbol.dispose]();
  await until('the number is taken back', () => !ids.has(id) && !ids.list().includes(id));
  links.delete(lower);
});

test('a rule leads from an address to a table, once, and is removed by its address and priority', () => {
  for (const [from, family] of [
    ['10.9.0.3', '-4'],
    ['fd00:9::3', '-6'],
  ] as const) {
    const rule = { from: IpAddress.parse(from), table: 0x4000_0007, priority: 32_700 };
    socket.request(ruleAddition(rule));
    expect(() => socket.request(ruleAddition(rule))).toThrow(/EEXIST/);
    const found = ip(family, 'rule').filter(({ priority }) => priority === 32_700);
    expect(found).toMatchObject([{ src: from, table: String(0x4000_0007), protocol: 'static' }]);
    const { table: _, ...which } = rule;
    socket.request(ruleRemoval(which));
    expect(ip(family, 'rule').filter(({ priority }) => priority === 32_700)).toEqual([]);
    expect(() => socket.request(ruleRemoval(which))).toThrow(/ENOENT/);
  }
});

test('a bridge, and a port made on it already, with its peer in a namespace under its final name', () => {
  using inside = Namespace.create('/run/netns/one');
  const made = links.createBridge({ name: 'br0', mac: mac('02:00:00:00:00:01'), group: 77 });
  expect(made).toMatchObject({ name: 'br0', kind: 'bridge', up: false, group: 77 });
  links.set(made, { up: true });
  const port = links.createVeth({
    name: 'port0',
    mac: mac('fe:00:00:00:00:02'),
    mtu: 1400,
    group: 78,
    master: made.index,
    peer: { name: 'eth0', mac: mac('02:00:00:00:00:02'), mtu: 1300, namespace: inside },
  });
  links.set(port, { alias: 'volt:x#1', up: true });
  expect(only(ip('-d', 'link', 'show', 'port0'))).toMatchObject({
    ifindex: port.index,
    address: 'fe:00:00:00:00:02',
    mtu: 1400,
    group: '78',
    master: 'br0',
    ifalias: 'volt:x#1',
  });
  expect(only(ip('-n', 'one', 'link', 'show', 'eth0'))).toMatchObject({
    ifindex: port.linkIndex,
    address: '02:00:00:00:00:02',
    mtu: 1300,
  });
});

test('a name is found by its index, also an alternative one, and nothing where there is none', () => {
  execFileSync(requireTool('ip'), ['link', 'property', 'add', 'dev', 'br0', 'altname', 'bridge0']);
  expect(links.indexOf('br0')).toBe(links.get('br0')?.index);
  expect(links.indexOf('bridge0')).toBe(links.get('br0')?.index);
  expect(links.indexOf('br1')).toBe(null);
  expect(links.nameOf(links.get('br0')?.index ?? 0)).toBe('br0');
  expect(links.nameOf(0x7fff_fffe)).toBe(null);
  // The kernel would take the first fifteen bytes for the name.
  execFileSync(requireTool('ip'), ['link', 'add', 'fifteen-letters', 'type', 'bridge']);
  expect(links.indexOf('fifteen-letters')).not.toBe(null);
  expect(links.indexOf('fifteen-letters-and-more')).toBe(null);
  execFileSync(requireTool('ip'), ['link', 'delete', 'fifteen-letters']);
});

test('dumps agree with ip on every device, address, route and forwarding entry', () => {
  addresses.add({
    ifindex: links.get('br0')?.index ?? 0,
    address: InterfaceAddress.parse('10.9.0.1/24'),
  });
  const theirs = ip('-d', 'addr');
  const ours = links.list();
  expect(ours.map(({ name }) => name)).toEqual(theirs.map(({ ifname }) => ifname));
  for (const link of ours) {
    const row = theirs.find(({ ifname }) => ifname === link.name);
    expect(row).toMatchObject({
      ifindex: link.index,
      mtu: link.mtu,
      address: link.mac?.toString(),
    });
    expect(row?.flags.includes('UP')).toBe(link.up);
    const own = addresses.list({ ifindex: link.index }).map(({ address }) => address.toString());
    expect(own).toEqual(row?.addr_info.map(({ local, prefixlen }) => `${local}/${prefixlen}`));
    expect(links.get(link.name)).toEqual(links.get(link.index));
  }
  const main = ip('route').map(({ dst }) => dst);
  expect(
    routes
      .list({ table: 254 })
      .filter(({ to }) => to?.family === 4)
      .map(({ to }) => to?.toString()),
  ).toEqual(main);
  const forwarding = bridge('fdb', 'show', 'br', 'br0').map((row) => row['mac']);
  const known = new Set(neighbours.listForwarding().map((entry) => entry.mac.toString()));
  for (const one of forwarding) expect(known).toContain(one);
});

test('routes, neighbours and forwarding entries come and go', () => {
  const { index } = links.get('br0') ?? { index: 0 };
  const to = IpPrefix.parse('10.77.0.0/16');
  const via = IpAddress.parse('10.9.0.254');
  routes.add({ to, via, ifindex: index });
  expect(only(ip('route', 'show', '10.77.0.0/16'))).toMatchObject({ gateway: '10.9.0.254' });
  expect(() => routes.add({ to, via, ifindex: index })).toThrow(/EEXIST/);
  socket.batch([{ ...routes.addition({ to, via, ifindex: index }), accept: 'EEXIST' }]);
  routes.remove({ to, via, ifindex: index });
  expect(ip('route', 'show', '10.77.0.0/16')).toEqual([]);

  neighbours.replace({ ifindex: index, address: via, mac: mac('02:00:00:00:00:09') });
  expect(only(ip('neigh', 'show', '10.9.0.254'))).toMatchObject({ lladdr: '02:00:00:00:00:09' });
  neighbours.remove({ ifindex: index, address: via });
  const port = { ifindex: links.get('port0')?.index ?? 0, mac: mac('02:00:00:00:00:0a') };
  neighbours.replaceForwarding(port);
  expect(bridge('fdb', 'show', 'br', 'br0').map((row) => row['mac'])).toContain(
    '02:00:00:00:00:0a',
  );
  neighbours.removeForwarding(port);
  expect(bridge('fdb', 'show', 'br', 'br0').map((row) => row['mac'])).not.toContain(
    '02:00:00:00:00:0a',
  );
});

describe('errors carry the errno and the words of the kernel', () => {
  const failure = (work: () => unknown): KernelError => {
    try {
      work();
    } catch (error) {
      if (error instanceof KernelError) return error;
      throw error;
    }
    throw new Error('it succeeded');
  };

  test('a name that is taken is EEXIST, also of the peer, and nothing is left of the pair', () => {
    const before = deviceNames();
    expect(failure(() => links.createBridge({ name: 'br0' })).code).toBe('EEXIST');
    const peer = { name: 'br0' };
    expect(failure(() => links.createVeth({ name: 'fresh', peer })).code).toBe('EEXIST');
    expect(deviceNames()).toEqual(before);
  });

  test('an MTU below the least is EINVAL, with extended text', () => {
    const error = failure(() => links.set(links.get('br0') ?? 0, { mtu: 1 }));
    expect(error).toMatchObject({
      code: 'EINVAL',
      operation: 'netlink RTM_SETLINK',
      subject: 'br0',
      kernelText: 'mtu less than device minimum',
    });
    expect(error.message).toBe(
      'netlink RTM_SETLINK br0: EINVAL (kernel: "mtu less than device minimum")',
    );
  });

  test('what is not there is null to get, success to delete, ENODEV to change', () => {
    expect(links.get('nothing')).toBeNull();
    expect(links.get(4_711)).toBeNull();
    links.delete(4_711);
    expect(failure(() => links.set(4_711, { up: true })).code).toBe('ENODEV');
  });

  test('a batch does all it can and throws the first error', () => {
    const write = (name: string) => ({
      type: RTM_NEWLINK,
      operation: 'RTM_NEWLINK',
      subject: name,
      flags: 0x600,
      write: newBridge(name),
    });
    const error = failure(() => socket.batch([write('b1'), write('br0'), write('b2')]));
    expect(error).toMatchObject({ code: 'EEXIST', subject: 'br0' });
    expect(deviceNames()).toEqual(expect.arrayContaining(['b1', 'b2']));
    links.delete(links.get('b1') ?? 0);
    links.delete(links.get('b2') ?? 0);
  });
});

function newBridge(name: string): Parameters<typeof socket.request>[0]['write'] {
  return (writer) => {
    writer.reserve(16);
    writer.attribute(3, () => writer.raw(Buffer.from(`${name}\0`)));
    writer.attribute(18, () => writer.attribute(1, () => writer.raw(Buffer.from('bridge'))));
  };
}

describe('deletion', () => {
  test('one message renames, regroups and takes down; one more deletes the whole group', async () => {
    for (let n = 0; n < 5; n += 1) {
      const link = links.createVeth({ name: `d${n}`, peer: { name: `e${n}` } });
      links.set(link, { up: true });
      links.set(link, { up: false, name: `vdel${link.index}`, group: 4_242 });
      expect(links.get(link.index)).toMatchObject({ up: false, group: 4_242 });
    }
    const keep = links.createVeth({ name: 'keep0', peer: { name: 'keep1' }, group: 4_243 });
    using own = NetlinkSocket.open();
    await new Links(own).deleteGroupAsync(4_242);
    expect(deviceNames().filter((name) => name.startsWith('vdel'))).toEqual([]);
    expect(deviceNames()).toContain('keep0');
    await new Links(own).deleteAsync(keep);
    expect(deviceNames()).not.toContain('keep0');
    await new Links(own).deleteGroupAsync(4_242); // nothing there is success
  });

  test('a socket with a deletion under way refuses other work', async () => {
    const link = links.createVeth({ name: 'busy0', peer: { name: 'busy1' } });
    using own = NetlinkSocket.open();
    const ownLinks = new Links(own);
    const deleting = ownLinks.deleteAsync(link);
    expect(() => ownLinks.get('lo')).toThrow(/under way/);
    await deleting;
    expect(ownLinks.get('lo')?.name).toBe('lo');
  });
});

test('events tell of changes; an overrun is told as such', async () => {
  const seen: string[] = [];
  let overruns = 0;
  using _events = subscribe(
    [RTNLGRP_LINK],
    {
      onMessage: (message) => {
        if (message.type === RTM_NEWLINK || message.type === RTM_DELLINK) {
          seen.push(parseLink(message).name);
        }
      },
      onOverrun: () => (overruns += 1),
    },
    { bufferBytes: 4_096 },
  );
  const watched = links.createBridge({ name: 'seen0' });
  await until('the event has come', () => seen.includes('seen0'));
  // A device that is down changes its alias in silence.
  links.set(watched, { up: true });
  // More than a buffer of this size holds, while nobody reads.
  for (let n = 0; n < 200; n += 1) links.set(watched, { alias: `volt:${n}` });
  await until('the overrun is told', () => overruns > 0);
  links.delete(watched);
});

test('dumps are whole while the table changes under them', async () => {
  const script = 'for i in $(seq 1 150); do ip link add t$i type bridge; ip link del t$i; done';
  const churn = spawn('sh', ['-c', script], { stdio: 'ignore' });
  const ended = new Promise((resolve) => churn.once('exit', resolve));
  for (let n = 0; n < 60; n += 1) {
    // Interrupted more often than it is retried is an error of its own, never a part of the table.
    let names: string[];
    try {
      names = links.list().map(({ name }) => name);
    } catch (error) {
      expect(error).toMatchObject({ code: 'EINTR' });
      continue;
    }
    expect(names).toEqual(expect.arrayContaining(['lo', 'br0', 'port0']));
    await sleep(1);
  }
  churn.kill('SIGKILL');
  await ended;
  execFileSync(requireTool('ip'), ['link', 'show']);
});

describe('a dump that pauses', () => {
  const MANY = 100;
  const own = NetlinkSocket.open();
  const ownLinks = new Links(own);
  const names = (all: readonly { readonly name: string }[]): string[] =>
    all.map(({ name }) => name).toSorted();

  beforeAll(() => {
    for (let n = 0; n < MANY; n += 1) links.createBridge({ name: `many${n}`, group: 4_244 });
  });
  afterAll(async () => {
    own[Symbol.dispose]();
    using deleting = NetlinkSocket.open();
    await new Links(deleting).deleteGroupAsync(4_244);
  });

  test('is the same as one that does not', () => {
    let pauses = 0;
    const steps = ownLinks.listSteps();
    let step = steps.next();
    for (; step.done !== true; step = steps.next()) {
      pauses += 1;
      // Nobody else gets an answer that is not his.
      expect(() => ownLinks.get('lo')).toThrow(/under way/);
    }
    expect(pauses).toBeGreaterThan(1);
    expect(names(step.value)).toEqual(names(links.list()));
    expect(ownLinks.get('lo')?.name).toBe('lo');
  });

  test('is read anew where the table has changed in a pause', () => {
    const steps = ownLinks.listSteps();
    steps.next();
    links.createBridge({ name: 'many-more', group: 4_244 });
    links.delete(links.get('many0')?.index ?? 0);
    expect(names(atOnce(steps))).toEqual(names(links.list()));
  });

  test('and that is given up leaves a socket that says so', () => {
    const given = NetlinkSocket.open();
    const steps = new Links(given).listSteps();
    steps.next();
    steps.return([]);
    expect(() => new Links(given).list()).toThrow(/under way/);
    given[Symbol.dispose]();
  });
});
