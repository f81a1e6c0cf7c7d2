import { execFileSync } from 'node:child_process';
import { readFileSync, writeSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { claimFrom } from '../../support/claim.ts';
import {
  addNamespace,
  bridge,
  deviceNames,
  ip,
  only,
  removeNamespace,
  type Row,
} from '../../support/kernel.ts';
import { startStack, type Stack, VOLT0 } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// A repeated attach takes nothing away: whatever somebody has done to a device, it is set right in place, and whoever
// holds it keeps it. iproute2 looks.

const NETWORKS = [
  VOLT0,
  { network: 'inner', type: 'host-only', subnet: '10.43.0.0/24', gateway: '10.43.0.1' },
  { network: 'beside', type: 'macvtap', parent: 'nic0', subnet: '10.60.0.0/24' },
  { network: 'alone', type: 'isolated', subnet: '10.44.0.0/24' },
];
const NETNS = 'repeated';

let stack: Stack;

const run = (...words: string[]): void => {
  execFileSync(requireTool('ip'), words);
};

beforeAll(async () => {
  run('link', 'add', 'nic0', 'type', 'veth', 'peer', 'name', 'wire0');
  run('link', 'set', 'nic0', 'up');
  run('link', 'set', 'wire0', 'up');
  addNamespace(NETNS);
  stack = await startStack({ networks: NETWORKS });
});
afterAll(async () => {
  await stack[Symbol.asyncDispose]();
  removeNamespace(NETNS);
});

interface Case {
  readonly network: string;
  readonly kind: Attachment['kind'];
}

const requestOf = (id: string, { network, kind }: Case): AttachRequest => ({
  id,
  workload: `${kind}-${id}`,
  kind,
  network,
  ...(kind === 'container' && { netns: `/run/netns/${NETNS}`, ifname: id }),
});

/** Of the kernel what has to be as it was. A bridge tells of a port's carrier, and a holder comes and goes. */
function shapeOf(name: string): object {
  const { ifindex, ifname, mtu, address, ifalias, master, group, flags } = only(
    ip('-d', 'link', 'show', 'dev', name),
  );
  const port = bridge('-d', 'link', 'show', 'dev', name).map((row) => settingsOf(row));
  const fixed = bridge('fdb', 'show', 'dev', name)
    .filter(({ flags: of }) => of.includes('sticky'))
    .map(({ mac }) => mac);
  const up = flags.includes('UP');
  return { ifindex, ifname, mtu, address, ifalias, master, group, up, port, fixed };
}

/** Of one that has another name now, nothing. */
const shapeOrNone = (name: string): object | null =>
  deviceNames().includes(name) ? shapeOf(name) : null;

const settingsOf = ({ flags: _flags, state: _state, ...settings }: Row): object => settings;

/** Does something to a device, and has the attach repeated before the agent can know of it. */
async function repeatAfter(request: AttachRequest, broken: () => void): Promise<Attachment> {
  process.kill(stack.agent.pid, 'SIGSTOP');
  let answer: Promise<{ attachment: Attachment; replayed: boolean }>;
  try {
    broken();
    answer = stack.client.attach(stack.host, request);
    await stack.connection.flush();
  } finally {
    process.kill(stack.agent.pid, 'SIGCONT');
  }
  const { attachment, replayed } = await answer;
  expect(replayed).toBe(true);
  return attachment;
}

type Harm = readonly [name: string, harm: (name: string) => void];

const HARMS: readonly Harm[] = [
  ['is down', (name) => run('link', 'set', name, 'down')],
  ['has another MTU', (name) => run('link', 'set', name, 'mtu', '1300')],
  ['has another alias', (name) => run('link', 'set', name, 'alias', 'web server, do not touch')],
  ['has the alias of another attachment', (name) => run('link', 'set', name, 'alias', 'volt:zz#9')],
  ['has lost its alias', (name) => run('link', 'set', name, 'alias', '')],
  ['is in another group', (name) => run('link', 'set', name, 'group', '7')],
  ['has another name', (name) => run('link', 'set', name, 'name', 'elsewhere')],
];
const OF_PORTS: readonly Harm[] = [
  ['is no port any more', (name) => run('link', 'set', name, 'nomaster')],
  [
    'learns, and has lost its entry',
    (name) => {
      const entry = bridge('fdb', 'show', 'dev', name).find(({ flags }) =>
        flags.includes('sticky'),
      );
      const args = ['fdb', 'del', String(entry?.['mac']), 'dev', name, 'master'];
      execFileSync(requireTool('bridge'), args);
      execFileSync(requireTool('bridge'), ['link', 'set', 'dev', name, 'learning', 'on']);
    },
  ],
];

const CASES: readonly [Case, readonly Harm[]][] = [
  [{ network: 'volt0', kind: 'vm' }, [...HARMS, ...OF_PORTS]],
  [{ network: 'volt0', kind: 'container' }, [...HARMS, ...OF_PORTS]],
  [{ network: 'inner', kind: 'vm' }, [...HARMS, ...OF_PORTS]],
  [{ network: 'inner', kind: 'container' }, [...HARMS, ...OF_PORTS]],
  // A macvtap has one name for the kernel and its file in /dev.
  [{ network: 'beside', kind: 'vm' }, HARMS],
];

for (const [place, harms] of CASES) {
  describe(`a ${place.kind} on ${place.network}`, () => {
    test.each(harms)('whose device %s: a repeat sets it right in place', async (name, harm) => {
      const { network, kind } = place;
      const id = `${network}-${kind[0]}${harms.findIndex(([one]) => one === name)}`;
      const request = requestOf(id, place);
      const { attachment } = await stack.client.attach(stack.host, request);
      const device = attachment.device?.name ?? '';
      const before = shapeOf(device);
      const held = place.kind === 'vm' ? await claimFrom(stack.agent, { op: 'claim', id }) : null;
      const [fd = -1] = held?.fds ?? [];
      try {
        const again = await repeatAfter(request, () => {
          harm(device);
          expect(shapeOrNone(device)).not.toEqual(before);
        });
        expect(shapeOf(device)).toEqual(before);
        expect(again).toEqual(attachment);
        const { differences } = await stack.client.check(stack.host, { id });
        expect(differences).toEqual([]);
        if (held !== null) {
          // Sent by the holder, as if nothing had been.
          expect(writeSync(fd, Buffer.alloc(64))).toBe(64);
          if (network !== 'beside') {
            expect(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8')).toContain(`iff:\t${device}`);
          }
        }
        const told = (line: string): boolean =>
          line.includes(`"id":"${id}"`) && line.includes('repaired');
        await until('it is told', () => stack.agent.output().split('\n').some(told));
      } finally {
        held?.close();
        await stack.client.detach(stack.host, { id });
        await stack.gone(id);
      }
    });
  });
}

test('what a container has done to its own interface is left to it by a repeat, and told by a check', async () => {
  for (const network of ['volt0', 'inner', 'beside']) {
    const request = requestOf('own', { network, kind: 'container' });
    const { attachment } = await stack.client.attach(stack.host, request);
    const inside = (): Row => only(ip('-n', NETNS, 'addr', 'show', 'dev', 'own'));
    const { ifindex } = inside();
    run('-n', NETNS, 'link', 'set', 'own', 'mtu', '1280');
    const again = await stack.client.attach(stack.host, request);
    expect(again).toEqual({ attachment, replayed: true });
    expect(inside()).toMatchObject({ ifindex, mtu: 1280 });
    const { differences } = await stack.client.check(stack.host, { id: 'own' });
    const what = network === 'beside' ? 'device.mtu' : 'device.peer.mtu';
    expect(differences).toMatchObject([{ what, observed: 1280 }]);
    await stack.client.detach(stack.host, { id: 'own' });
    await stack.gone('own');
  }
});

test('a device that is gone is made anew by a repeat, with its addresses', async () => {
  for (const [place] of CASES) {
    const request = requestOf('gone', place);
    const { attachment } = await stack.client.attach(stack.host, request);
    process.kill(stack.agent.pid, 'SIGSTOP');
    run('link', 'delete', attachment.device?.name ?? '');
    const answer = stack.client.attach(stack.host, request);
    await stack.connection.flush();
    process.kill(stack.agent.pid, 'SIGCONT');
    const { attachment: again } = await answer;
    const { generation, mac, addresses } = attachment;
    expect(again).toMatchObject({ generation, mac, addresses });
    const { ifindex, name } = again.device ?? {};
    expect(only(ip('link', 'show', 'dev', name ?? ''))).toMatchObject({ ifindex });
    await stack.client.detach(stack.host, { id: 'gone' });
    await stack.gone('gone');
  }
});

describe('a repeat that cannot make a lost device anew', () => {
  const place: Case = { network: 'beside', kind: 'vm' };

  test('leaves the attachment as it is: its device is made when it can be', async () => {
    const request = requestOf('waits', place);
    const { attachment } = await stack.client.attach(stack.host, request);
    run('link', 'delete', 'nic0');
    await expect(stack.client.attach(stack.host, request)).rejects.toMatchObject({
      code: 'PARENT_NOT_FOUND',
    });
    const { state } = (await stack.client.get(stack.host, { id: 'waits' })).attachment;
    expect(state).toBe('attached');
    run('link', 'add', 'nic0', 'type', 'veth', 'peer', 'name', 'wire0');
    for (const name of ['nic0', 'wire0']) run('link', 'set', name, 'up');
    const { attachment: again } = await stack.client.attach(stack.host, request);
    const { generation, mac, addresses } = attachment;
    expect(again).toMatchObject({ generation, mac, addresses });
    await stack.client.detach(stack.host, { id: 'waits' });
    await stack.gone('waits');
  });

  test('needs no ledger', async () => {
    const vm: Case = { network: 'volt0', kind: 'vm' };
    const request = requestOf('alone', vm);
    const { attachment } = await stack.client.attach(stack.host, request);
    process.kill(stack.agent.pid, 'SIGSTOP');
    process.kill(stack.redis.pid, 'SIGSTOP');
    try {
      run('link', 'delete', attachment.device?.name ?? '');
      const answer = stack.client.attach(stack.host, request);
      await stack.connection.flush();
      process.kill(stack.agent.pid, 'SIGCONT');
      expect((await answer).attachment.generation).toBe(attachment.generation);
    } finally {
      process.kill(stack.redis.pid, 'SIGCONT');
    }
    await stack.client.detach(stack.host, { id: 'alone' });
    await stack.gone('alone');
  });

  test('in a new namespace that has the interface already leaves it, too', async () => {
    addNamespace('first');
    const request = {
      ...requestOf('moved', { network: 'volt0', kind: 'container' }),
      netns: '/run/netns/first',
    };
    const { attachment } = await stack.client.attach(stack.host, request);
    removeNamespace('first');
    addNamespace('second');
    run('-n', 'second', 'link', 'add', 'moved', 'type', 'bridge');
    const other = { ...request, netns: '/run/netns/second' };
    await until('the first is gone', async () => {
      const code = await stack.client.attach(stack.host, other).then(
        () => 'attached',
        (error: unknown) => (error as { code?: string }).code,
      );
      return code === 'INTERFACE_EXISTS';
    });
    run('-n', 'second', 'link', 'delete', 'moved');
    const { attachment: again } = await stack.client.attach(stack.host, other);
    const { mac, addresses } = attachment;
    expect(again).toMatchObject({ mac, addresses });
    await stack.client.detach(stack.host, { id: 'moved' });
    await stack.gone('moved');
    removeNamespace('second');
  });
});
