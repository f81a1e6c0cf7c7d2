import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { addNamespace, removeNamespace } from '../support/kernel.ts';
import { type Stack, startStack } from '../support/stack.ts';
import { requireTool } from '../support/tools.ts';
import { printFigures, timed } from './figures.ts';

const BLOCKS = 5;
const BLOCK_LENGTH = 16;
/** Blocks not counted: the agent's code is compiled while it runs. */
const WARM_UP_BLOCKS = 50;
const CNI_FOLDER = '/usr/lib/cni';

/**
 * A container's attach (interface, bridge, address, route), warm, one at a time: this agent over NATS, the
 * same operations with `ip -batch`, and the CNI plugins bridge and host-local. They take turns in blocks, so
 * that each is timed warm and all see the same machine.
 */
export async function benchAttach(): Promise<void> {
  await using stack = await startStack({ networks: [WIDE] });
  const folder = mkdtempSync(join(tmpdir(), 'volt-bench-'));
  const slots = Array.from({ length: BLOCK_LENGTH }, (_, n) => `bench${n}`);
  const agent = [agentContainer(stack), agentVm(stack)];
  const rivals = [...agent, ipBatch(folder), cni(folder)];
  const attach = new Map<string, number[]>(rivals.map(({ name }) => [name, []]));
  const detach = new Map<string, number[]>(rivals.map(({ name }) => [name, []]));
  const block = async (rival: Rival, counted: boolean): Promise<void> => {
    for (const slot of slots) addNamespace(slot);
    await rival.prepare?.();
    for (const slot of slots) {
      const ms = await timed(() => rival.attach(slot));
      if (counted) attach.get(rival.name)?.push(ms);
    }
    for (const slot of slots) {
      const ms = await timed(() => rival.detach(slot));
      if (counted) detach.get(rival.name)?.push(ms);
    }
    for (const slot of slots) {
      await rival.settle?.(slot);
      removeNamespace(slot);
    }
  };
  try {
    for (let n = 0; n < WARM_UP_BLOCKS; n += 1)
      for (const rival of agent) await block(rival, false);
    for (let n = 0; n < BLOCKS; n += 1) for (const rival of rivals) await block(rival, true);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  const series = (times: Map<string, number[]>) =>
    [...times].map(([name, values]) => ({ name, times: values })).toReversed();
  const title = `${BLOCKS} blocks of ${BLOCK_LENGTH}, ratio to CNI's`;
  printFigures(`attach, ${title}`, series(attach));
  printFigures(`detach until answered, ${title}`, series(detach));
}

/** Nothing is used twice within the cool-down. */
const WIDE = { network: 'volt0', subnet: '10.42.0.0/16', gateway: '10.42.0.1' };

interface Rival {
  readonly name: string;
  /** A slot is the name of a network namespace, and of what is attached. */
  readonly attach: (slot: string) => unknown;
  readonly detach: (slot: string) => unknown;
  readonly prepare?: () => Promise<unknown>;
  /** What follows the answer, and is waited for before the next turn. */
  readonly settle?: (slot: string) => Promise<unknown>;
}

const agentContainer = ({ client, host, gone }: Stack): Rival => ({
  name: 'volt-network-agent, container',
  prepare: () => talk({ client, host }),
  attach: (slot) =>
    client.attach(host, {
      id: slot,
      workload: `container-${slot}`,
      kind: 'container',
      network: 'volt0',
      netns: `/run/netns/${slot}`,
    }),
  detach: (slot) => client.detach(host, { id: slot }),
  settle: gone,
});

const agentVm = ({ client, host, gone }: Stack): Rival => ({
  name: 'volt-network-agent, VM',
  prepare: () => talk({ client, host }),
  attach: (slot) =>
    client.attach(host, { id: slot, workload: `vm-${slot}`, kind: 'vm', network: 'volt0' }),
  detach: (slot) => client.detach(host, { id: slot }),
  settle: gone,
});

/** While the others had their turn, the agent and its connection were idle. */
async function talk({ client, host }: Pick<Stack, 'client' | 'host'>): Promise<void> {
  for (let n = 0; n < 10; n += 1) await client.list(host, { limit: 1 });
}

function ipBatch(folder: string): Rival {
  const ip = requireTool('ip');
  execFileSync(ip, ['link', 'add', 'rival0', 'type', 'bridge']);
  execFileSync(ip, ['addr', 'add', '10.80.0.1/24', 'dev', 'rival0']);
  execFileSync(ip, ['link', 'set', 'rival0', 'up']);
  const batch = (name: string, lines: readonly string[]): string => {
    const file = join(folder, name);
    writeFileSync(file, `${lines.join('\n')}\n`);
    return file;
  };
  const inside = batch('inside', [
    'link set lo up',
    'addr add 10.80.0.2/24 dev eth0',
    'link set eth0 up',
    'route add default via 10.80.0.1',
  ]);
  return {
    name: 'ip -batch, twice',
    attach: (slot) => {
      const outside = batch(slot, [
        `link add ${slot}-h type veth peer name eth0 netns ${slot}`,
        `link set ${slot}-h master rival0 up`,
      ]);
      execFileSync(ip, ['-batch', outside]);
      execFileSync(ip, ['-n', slot, '-batch', inside]);
    },
    detach: (slot) => execFileSync(ip, ['link', 'delete', `${slot}-h`]),
  };
}

function cni(folder: string): Rival {
  const config = JSON.stringify({
    cniVersion: '1.0.0',
    name: 'rival',
    type: 'bridge',
    bridge: 'rival1',
    isGateway: true,
    ipam: {
      type: 'host-local',
      dataDir: join(folder, 'cni'),
      subnet: '10.81.0.0/24',
      routes: [{ dst: '0.0.0.0/0' }],
    },
  });
  const run = (command: string, slot: string): void => {
    execFileSync(join(CNI_FOLDER, 'bridge'), {
      input: config,
      env: {
        CNI_COMMAND: command,
        CNI_CONTAINERID: slot,
        CNI_NETNS: `/run/netns/${slot}`,
        CNI_IFNAME: 'eth0',
        CNI_PATH: CNI_FOLDER,
        PATH: process.env['PATH'] ?? '',
      },
    });
  };
  return {
    name: 'CNI bridge + host-local',
    attach: (slot) => run('ADD', slot),
    detach: (slot) => run('DEL', slot),
  };
}
