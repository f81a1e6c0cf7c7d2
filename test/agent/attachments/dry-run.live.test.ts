import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import { parseNetwork } from '#protocol/network.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import { Journal } from '#agent/storage/journal.ts';
import { createLog } from '#agent/log.ts';
import { type HostNetwork, openHostNetwork } from '#agent/host/networks/types.ts';
import { Namespace } from '#native/namespace.ts';
import { type KernelOperation, operationsDuring } from '#native/trace.ts';
import { makeForeign } from '../../support/agreement-of-host.ts';
import { addNamespace, deviceNames, ip, nftElements } from '../../support/kernel.ts';
import { startStack, type Stack } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// An attach with dryRun: what it says is what the attach does, and the host is as it was.

const NETWORKS = {
  bridged: { network: 're-bridged', subnet: '10.42.0.0/24', gateway: '10.42.0.1' },
  adopted: { network: 're-adopted', bridge: 'foreign9', subnet: '10.43.0.0/24' },
  'host-only': {
    network: 're-host',
    type: 'host-only',
    subnet: '10.44.0.0/24',
    gateway: '10.44.0.1',
    nat: {},
  },
  isolated: { network: 're-island', type: 'isolated', subnet: '10.45.0.0/24' },
  macvtap: { network: 're-parent', type: 'macvtap', parent: 'nic9', subnet: '10.46.0.0/24' },
} as const;

const KINDS = ['vm', 'container'] as const;

const run = (command: string): void => {
  execFileSync(requireTool('ip'), command.split(' '));
};

/** Each has one of its own: what lies in one that goes may go later. */
function netnsOf(type: string, kind: (typeof KINDS)[number], name: string): object {
  if (kind === 'vm' || type === 'isolated') return {};
  addNamespace(name);
  return { netns: `/run/netns/${name}` };
}

const extrasOf = (type: string, nth: number): Partial<AttachRequest> => {
  if (type === 'bridged' && nth > 0) return { bandwidth: { egressBitsPerSecond: 8_000_000 } };
  if (type !== 'host-only') return {};
  return {
    ports: [
      { protocol: 'tcp', hostPort: 8_080 + nth, port: 80 },
      { protocol: 'udp', hostPort: 53 + nth, port: 53, hostAddress: '192.0.2.9' },
    ],
  };
};

beforeAll(() => {
  run('link add nic9 address 02:00:00:00:00:49 type veth peer name wire9');
  run('link set nic9 up');
  run('link add foreign9 address 02:00:00:00:00:99 mtu 1450 type bridge');
  run('link set foreign9 up');
  run('addr add 192.0.2.9/32 dev lo');
});

/** Numbers of devices are another namespace's. */
const plain = ({ operation, subject }: KernelOperation): string =>
  `${operation} ${subject}`.replaceAll(/#\d+|ifb-\d+/g, 'N');

describe('the operations are those of the attach that follows', () => {
  let folder: string;
  let host: HostNetwork;

  beforeAll(() => {
    folder = mkdtempSync('/run/volt-test-dry-run-');
    const log = createLog('silent', 'h1');
    const dirs = { runtimeDir: folder, stateDir: folder };
    const journal = new Journal({ ...dirs, bootId: 'boot', log });
    host = openHostNetwork({
      config: { host: 'h1', nftablesTable: 'dryrun', runtimeDir: folder },
      journal,
      log,
    });
    host.firewall.start();
  });
  afterAll(async () => {
    await host.dryRuns.close();
    host.firewall[Symbol.dispose]();
    rmSync(folder, { recursive: true });
  });

  for (const [type, keys] of Object.entries(NETWORKS)) {
    for (const [nth, kind] of [...KINDS, ...KINDS].entries()) {
      // The first of a network makes its bridge, the others find it.
      test(`${type}, ${kind}, ${nth + 1}`, async () => {
        const network = parseNetwork(keys);
        const id = `${type}-${nth}`;
        const request: AttachRequest = {
          id,
          workload: `w-${id}`,
          kind,
          network: network.network,
          ...netnsOf(type, kind, id),
          ...extrasOf(type, nth),
        };
        const lease: Lease = {
          id,
          generation: 7,
          mac: `02:00:00:00:0${nth}:01`,
          addresses: [`${keys.subnet.slice(0, '10.42.0.'.length)}${nth + 5}/24`],
          network: network.network,
          workload: request.workload,
          kind,
          host: 'h1',
          bootId: 'boot',
          grantedAt: '2026-01-01T00:00:00.000Z',
        };
        const networkType = host.networkTypes[network.type];
        if (networkType === undefined) throw new Error('no such type');
        using checked = networkType.check(request, network);
        const { deviceName, before } = checked;
        const made = before?.['madeNamespace'];
        const devices = deviceNames();
        const elements = nftElements();
        const order = {
          request,
          network,
          lease,
          deviceName,
          ...(typeof made === 'string' && { madeNamespace: made }),
        };
        const said = await host.dryRuns.dryRun(order, Infinity);
        expect(deviceNames()).toEqual(devices);
        expect(nftElements()).toEqual(elements);
        checked.prepare();
        using undo = new DisposableStack();
        const done = operationsDuring(() => {
          checked.attach(lease, undo);
          undo.move();
        }).filter(({ operation }) => !operation.startsWith('RTM_GET'));
        expect(said.map(plain)).toEqual(done.map(plain));
        expect(said.length).toBeGreaterThan(1);
        if (typeof made === 'string') Namespace.remove(made);
      });
    }
  }
});

describe('over NATS', () => {
  let stack: Stack;
  const ask = { id: 'one', workload: 'vm-one', kind: 'vm', network: 're-bridged' } as const;

  beforeAll(async () => {
    // What was made above has no record: the agent would take it for leftovers, and remove it after a grace.
    for (const { ifname, ifalias } of ip('link')) {
      if (!/^volt:.+#7$/.test(String(ifalias))) continue;
      execFileSync(requireTool('ip'), ['link', 'delete', String(ifname)]);
    }
    stack = await startStack({ networks: Object.values(NETWORKS) });
  });
  afterAll(() => stack[Symbol.asyncDispose]());

  const refusal = async (request: AttachRequest): Promise<unknown> =>
    stack.client.dryRun(stack.host, request).catch((error: unknown) => error);

  test('it says lease and operations, and leaves the host, the ledger and others as they were', async () => {
    const { client, host, connection } = stack;
    using foreign = makeForeign();
    const others = foreign.look();
    const before = await stack.snapshot();
    let events = 0;
    const listening = connection.subscribe('volt.net.v1.event.>', {
      callback: () => (events += 1),
    });
    for (const [type, { network }] of Object.entries(NETWORKS)) {
      for (const kind of KINDS) {
        const id = `${type}-${kind}`;
        const workload = `w-${id}`;
        const asked = {
          id,
          workload,
          kind,
          network,
          ...netnsOf(type, kind, `over-${id}`),
          requestId: 'r-1',
        };
        const said = await client.dryRun(host, asked);
        expect(said).toMatchObject({ dryRun: true, replayed: false });
        expect(said.lease.addresses).toHaveLength(1);
        expect(said.operations.length).toBeGreaterThan(1);
      }
    }
    expect(await stack.snapshot()).toEqual(before);
    expect(foreign.look()).toEqual(others);
    expect(ip('-n', 'over-bridged-container', 'link').map(({ ifname }) => ifname)).toEqual(['lo']);
    expect(existsSync('/run/netns/volt-isolated-vm')).toBe(false);
    expect(events).toBe(0);
    listening.unsubscribe();
  });

  test('the attach after it gets what it said, under the same request id', async () => {
    const { client, host } = stack;
    const asked = { ...ask, requestId: 'r-2' };
    const { lease } = await client.dryRun(host, asked);
    const { attachment, replayed } = await client.attach(host, asked);
    expect(replayed).toBe(false);
    expect(attachment.mac).toBe(lease.mac);
    expect(attachment.addresses.map(({ address }) => address)).toEqual(lease.addresses);
    expect(await client.dryRun(host, ask)).toEqual({
      dryRun: true,
      replayed: true,
      lease,
      operations: [],
    });
    expect(await refusal({ ...ask, workload: 'other' })).toMatchObject({
      code: 'ALREADY_ATTACHED',
    });
    await client.detach(host, { id: 'one' });
    await stack.gone('one');
  });

  test.each([
    ['UNKNOWN_NETWORK', { network: 'nowhere' }],
    ['ADDRESS_OUT_OF_RANGE', { addresses: ['192.0.2.1'] }],
    ['NAMESPACE_NOT_FOUND', { kind: 'container', netns: '/run/netns/nowhere' }],
    ['INVALID_REQUEST', { mtu: 9_000 }],
    ['UNSUPPORTED', { ports: [{ protocol: 'tcp', hostPort: 1, port: 1 }] }],
  ] as const)('what an attach refuses as %s it refuses, too', async (code, more) => {
    const request = { ...ask, id: 'bad', ...more } as AttachRequest;
    const said = await refusal(request);
    expect(said).toMatchObject({ code });
    const done: unknown = await stack.client.attach(stack.host, request).catch((e: unknown) => e);
    expect(done).toMatchObject({ code });
  });

  test('a job with dryRun fails: nobody would hear the answer', async () => {
    const { client, host, connection } = stack;
    const failed = connection.subscribe('volt.net.v1.event.*.*.failed', { max: 1 });
    await client.submitAttach(host, { ...ask, id: 'job', dryRun: true });
    for await (const { data } of failed) {
      expect(Buffer.from(data).toString('latin1')).toContain('dryRun');
    }
    expect((await client.list(host)).attachments).toEqual([]);
  });
});
