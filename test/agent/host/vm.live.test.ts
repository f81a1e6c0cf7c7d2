import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment } from '#protocol/attachment.ts';
import { requestSeqpacket } from '#native/unix.ts';
import { bootGuest } from '../../support/guest.ts';
import { addNamespace, bridge, ip, only, removeNamespace } from '../../support/kernel.ts';
import { type Claimed, claimFrom } from '../../support/claim.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// A TAP from request to guest: what the kernel has of it, who may claim it, and a real VM on it.

let stack: Stack;

beforeAll(async () => {
  stack = await startStack();
});
afterAll(() => stack[Symbol.asyncDispose]());

const attachVm = async (id: string, extra: object = {}): Promise<Attachment> => {
  const request = { id, workload: `vm-${id}`, kind: 'vm', network: 'volt0', ...extra } as const;
  return (await stack.client.attach(stack.host, request)).attachment;
};

const detach = async (id: string): Promise<void> => {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
};

const claim = (request: object): Promise<Claimed> => claimFrom(stack.agent, request);

test('a TAP is exactly what the answer says', async () => {
  const attachment = await attachVm('shape', { mtu: 1400, tap: { queues: 2, ownerUid: 4711 } });
  const { device } = attachment;
  expect(device).toMatchObject({ type: 'tap', name: 'tap-shape', queues: 2, vnetHdr: true });
  const link = only(ip('-d', 'link', 'show', 'tap-shape'));
  expect(link).toMatchObject({
    ifindex: device?.ifindex,
    address: device?.mac,
    mtu: 1400,
    master: 'volt0',
    ifalias: `volt:shape#${attachment.generation}`,
    linkinfo: {
      info_kind: 'tun',
      info_data: {
        type: 'tap',
        pi: false,
        vnet_hdr: true,
        multi_queue: true,
        persist: true,
        user: 4711,
      },
    },
  });
  expect(link.flags).toContain('UP');
  expect(device?.mac).toBe(`fe${attachment.mac.slice(2)}`);
  expect(bridge('link').find(({ ifname }) => ifname === 'tap-shape')).toMatchObject({
    master: 'volt0',
    state: expect.stringMatching(/forwarding|disabled/),
  });
  const ipv6 = '/proc/sys/net/ipv6/conf/tap-shape/disable_ipv6';
  expect(readFileSync(ipv6, 'utf8').trim()).toBe('1');
  await detach('shape');
  expect(ip('link').map(({ ifname }) => ifname)).not.toContain('tap-shape');
});

describe('a claim', () => {
  test.each([1, 3])('hands over one descriptor for each of %i queues', async (queues) => {
    const { generation } = await attachVm('claimed', { tap: { queues } });
    const first = await claim({ op: 'claim', id: 'claimed', generation });
    expect(first.body).toMatchObject({ attachment: { id: 'claimed', device: { queues } } });
    expect(first.fds).toHaveLength(queues);
    for (const fd of first.fds) {
      const info = readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8');
      expect(info).toContain('iff:\ttap-claimed');
    }
    const second = await claim({ op: 'claim', id: 'claimed' });
    expect(second.body.error?.code).toBe('DEVICE_BUSY');
    expect(second.fds).toHaveLength(0);
    first.close();
    const third = await claim({ op: 'claim', id: 'claimed' });
    expect(third.fds).toHaveLength(queues);
    third.close();
    await detach('claimed');
  });

  test('is refused for what is not attached, is of another generation, or has no descriptor', async () => {
    const { generation } = await attachVm('fenced');
    const stale = await claim({ op: 'claim', id: 'fenced', generation: generation - 1 });
    expect(stale.body.error?.code).toBe('STALE_GENERATION');
    const unknown = await claim({ op: 'claim', id: 'nobody' });
    expect(unknown.body.error?.code).toBe('NOT_FOUND');
    await stack.client.attach(stack.host, {
      id: 'box',
      workload: 'container-box',
      kind: 'container',
      network: 'volt0',
    });
    expect((await claim({ op: 'claim', id: 'box' })).body.error?.code).toBe('UNSUPPORTED');
    for (const bad of [
      '',
      '{',
      '[]',
      '{"op":"format"}',
      '{"op":"claim"}',
      '{"op":"claim","id":7}',
    ]) {
      const { bytes } = await requestSeqpacket(stack.agent.socketPath, Buffer.from(bad || ' '));
      expect(JSON.parse(bytes.toString())).toMatchObject({ error: { code: 'INVALID_REQUEST' } });
    }
    await detach('fenced');
    await detach('box');
  });

  test('is for root, the owner and the group of the request, and nobody else', async () => {
    await attachVm('owned', { tap: { ownerUid: 4711 } });
    await attachVm('grouped', { tap: { ownerGid: 4712 } });
    // In Python, and from /: these users cannot read a checkout in /root.
    const script = `
import json, socket, sys
peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
peer.connect(sys.argv[1])
peer.send(sys.argv[2].encode())
answer, descriptors, *_ = socket.recv_fds(peer, 65536, 8)
print(json.loads(answer).get("error", {}).get("code", len(descriptors)))`;
    const claimAs = (id: string, ...identity: string[]): string => {
      const packet = JSON.stringify({ op: 'claim', id });
      // Debian's: another user has to be able to start it.
      const run = ['/usr/bin/python3', '-c', script, stack.agent.socketPath, packet];
      return execFileSync(requireTool('setpriv'), [...identity, '--', ...run], {
        encoding: 'utf8',
        cwd: '/',
      }).trim();
    };
    const stranger = ['--reuid', '4713', '--regid', '4713', '--clear-groups'];
    expect(claimAs('owned', '--reuid', '4711', '--regid', '4713', '--clear-groups')).toBe('1');
    expect(claimAs('owned', ...stranger)).toBe('UNAUTHORIZED');
    expect(claimAs('grouped', '--reuid', '4713', '--regid', '4713', '--groups', '4712')).toBe('1');
    expect(claimAs('grouped', ...stranger)).toBe('UNAUTHORIZED');
    await detach('owned');
    await detach('grouped');
  });

  test('still works after the agent was killed and started again', async () => {
    await attachVm('kept');
    await stack.agent.restart('SIGKILL');
    const claimed = await claim({ op: 'claim', id: 'kept' });
    expect(claimed.fds).toHaveLength(1);
    claimed.close();
    await stack.agent.ready();
    expect((await stack.client.check(stack.host, {})).inSync).toBe(true);
    await detach('kept');
  });
});

describe('a real guest', () => {
  test.each([1, 2])(
    'with %i queues pings a container, and is pinged by it',
    async (queues) => {
      const namespace = `pc${queues}`;
      addNamespace(namespace);
      const peer = await stack.client.attach(stack.host, {
        id: namespace,
        workload: `container-${namespace}`,
        kind: 'container',
        network: 'volt0',
        netns: `/run/netns/${namespace}`,
      });
      const attachment = await attachVm('guest', { tap: { queues } });
      const [own] = attachment.addresses;
      const [other] = peer.attachment.addresses;
      if (own === undefined || other === undefined) throw new Error('both have an address');
      const env = { VOLT_NET_RUNTIME_DIR: stack.agent.runtimeDir };
      await using guest = await bootGuest(
        'guest',
        {
          queues,
          address: own.address,
          gateway: '10.42.0.1',
          ping: other.address.split('/')[0] ?? '',
          seconds: 120,
        },
        env,
      );
      expect(guest.output()).toContain(`link/ether ${attachment.mac}`);
      expect(guest.output()).toContain(`GUEST queues ${queues}`);
      expect(guest.output()).toMatch(/GUEST ping .* answered/);
      const target = own.address.split('/')[0] ?? '';
      const pinged = execFileSync(
        requireTool('ip'),
        ['netns', 'exec', namespace, 'ping', '-c', '3', '-W', '5', target],
        { encoding: 'utf8' },
      );
      expect(pinged).toContain('3 received');
      await detach('guest');
      await detach(namespace);
      removeNamespace(namespace);
    },
    180_000,
  );
});
