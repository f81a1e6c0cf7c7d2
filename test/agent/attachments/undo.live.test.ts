import { execFileSync } from 'node:child_process';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { failEachMessage } from '../../support/failing.ts';
import { addNamespace, deviceNames, ip, only, removeNamespace } from '../../support/kernel.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// What an attach that failed leaves, whichever of its messages to the kernel it was that failed.

const KINDS = ['container', 'vm'] as const;
const BRIDGED = { network: 'undo0', subnet: '10.46.0.0/24', gateway: '10.46.0.1' };
// The mode in which an attach changes most: the parent has the workload's MAC while it lasts.
const MACVTAP = {
  network: 'undo1',
  type: 'macvtap',
  parent: 'nic0',
  mode: 'passthru',
  subnet: '10.47.0.0/24',
};

function run(...commands: readonly string[]): void {
  for (const command of commands) execFileSync(requireTool('ip'), command.split(' '));
}

async function failEach(
  stack: Stack,
  { network, kind }: { network: string; kind: (typeof KINDS)[number] },
): Promise<void> {
  const devices = deviceNames().toSorted();
  await failEachMessage(
    stack,
    (id) => ({
      id,
      workload: `${kind}-undo`,
      kind,
      network,
      ...(kind === 'container' && { netns: '/run/netns/undo' }),
    }),
    () => {
      expect(deviceNames().toSorted()).toEqual(devices);
      expect(ip('-n', 'undo', 'link').map(({ ifname }) => ifname)).toEqual(['lo']);
    },
  );
}

beforeEach(() => addNamespace('undo'));
afterEach(() => removeNamespace('undo'));

describe('a message that fails within the attach leaves nothing', () => {
  test.each(KINDS)(
    'of a %s on a bridge',
    async (kind) => {
      run(
        'link add undo0 address 02:00:00:00:00:46 type bridge',
        'addr add 10.46.0.1/24 dev undo0',
        'link set undo0 mtu 1450',
        'link set undo0 up',
      );
      await using stack = await startStack({ networks: [BRIDGED] });
      await failEach(stack, { network: 'undo0', kind });
      // The bridge was there before us: its address, MTU and MAC are as they were.
      const bridge = only(ip('addr', 'show', 'undo0'));
      expect(bridge).toMatchObject({ mtu: 1450, address: '02:00:00:00:00:46' });
      expect(bridge.addr_info.map(({ local }) => local)).toContain('10.46.0.1');
      run('link delete undo0');
    },
    180_000,
  );

  test.each(KINDS)(
    'of a %s on a parent',
    async (kind) => {
      run(
        'link add nic0 address 02:00:00:00:00:47 type veth peer name wire0',
        'link set nic0 up',
        'link set wire0 up',
      );
      await using stack = await startStack({ networks: [MACVTAP] });
      await failEach(stack, { network: 'undo1', kind });
      expect(only(ip('link', 'show', 'nic0'))['address']).toBe('02:00:00:00:00:47');
      run('link delete nic0');
    },
    180_000,
  );
});

test('attaches that the ledger refuses leave no device, however many come at once', async () => {
  const network = { network: 'undo0', subnet: '10.46.0.0/29', gateway: '10.46.0.1' };
  await using stack = await startStack({ networks: [network] });
  const attach = (kind: (typeof KINDS)[number], id: string) =>
    stack.client.attach(stack.host, { id, workload: `${kind}-${id}`, kind, network: 'undo0' });
  // The bridge stands: devices are begun before their leases are there.
  await attach('vm', 'first');
  const ids = Array.from({ length: 60 }, (_, n) => `many-${n}`);
  const settled = await Promise.allSettled(
    ids.map((id, n) => attach(n % 2 === 0 ? 'vm' : 'container', id)),
  );
  const attached = settled.flatMap((one) => (one.status === 'fulfilled' ? one.value : []));
  const codes = settled.flatMap((one) =>
    one.status === 'rejected' ? (one.reason as { code?: string }).code : [],
  );
  expect(attached).toHaveLength(4);
  expect(new Set(codes)).toEqual(new Set(['POOL_EXHAUSTED']));
  const names = attached.flatMap(({ attachment: { device } }) => [
    device?.name ?? '',
    ...(device?.peer === undefined ? [] : [device.peer.name]),
  ]);
  expect(deviceNames().toSorted()).toEqual(['lo', 'tap-first', 'undo0', ...names].toSorted());
  expect((await stack.client.list(stack.host, {})).attachments).toHaveLength(5);
  for (const id of ['first', ...attached.map(({ attachment }) => attachment.id)]) {
    await stack.client.detach(stack.host, { id });
    await stack.gone(id);
  }
});
