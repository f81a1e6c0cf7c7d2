import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { addNamespace, removeNamespace } from '../support/kernel.ts';
import { type Stack, startStack } from '../support/stack.ts';
import { requireTool } from '../support/tools.ts';
import { printFigures, timed } from './figures.ts';

const ROUNDS = 30;
const WARM_UP = 3;
const CNI_FOLDER = '/usr/lib/cni';
const NAMESPACE = 'bench';
const PATH = `/run/netns/${NAMESPACE}`;

/**
 * A container's attach (interface, bridge, address, route), warm, one at a time: this agent over NATS, the
 * same operations with `ip -batch`, and the CNI plugins bridge and host-local. They take turns.
 */
export async function benchAttach(): Promise<void> {
  await using stack = await startStack();
  const folder = mkdtempSync(join(tmpdir(), 'volt-bench-'));
  const rivals = [agentContainer(stack), agentVm(stack), ipBatch(folder), cni(folder)];
  const attach = new Map<string, number[]>(rivals.map(({ name }) => [name, []]));
  const detach = new Map<string, number[]>(rivals.map(({ name }) => [name, []]));
  try {
    for (let round = 0; round < WARM_UP + ROUNDS; round += 1) {
      for (const rival of rivals) {
        addNamespace(NAMESPACE);
        const attachMs = await timed(rival.attach);
        const detachMs = await timed(rival.detach);
        await rival.settle?.();
        removeNamespace(NAMESPACE);
        if (round < WARM_UP) continue;
        attach.get(rival.name)?.push(attachMs);
        detach.get(rival.name)?.push(detachMs);
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  const series = (times: Map<string, number[]>) =>
    [...times].map(([name, values]) => ({ name, times: values }));
  printFigures(`attach, ${ROUNDS} rounds`, series(attach));
  printFigures(`detach until answered, ${ROUNDS} rounds`, series(detach));
}

interface Rival {
  readonly name: string;
  readonly attach: () => Promise<unknown> | unknown;
  readonly detach: () => Promise<unknown> | unknown;
  /** What follows the answer, and is waited for before the next turn. */
  readonly settle?: () => Promise<unknown>;
}

const agentContainer = ({ client, host, gone }: Stack): Rival => ({
  name: 'volt-network-agent, container',
  attach: () =>
    client.attach(host, {
      id: 'bench',
      workload: 'container-bench',
      kind: 'container',
      network: 'volt0',
      netns: PATH,
    }),
  detach: () => client.detach(host, { id: 'bench' }),
  settle: () => gone('bench'),
});

const agentVm = ({ client, host, gone }: Stack): Rival => ({
  name: 'volt-network-agent, VM',
  attach: () =>
    client.attach(host, { id: 'bench-vm', workload: 'vm-bench', kind: 'vm', network: 'volt0' }),
  detach: () => client.detach(host, { id: 'bench-vm' }),
  settle: () => gone('bench-vm'),
});

function ipBatch(folder: string): Rival {
  const ip = requireTool('ip');
  execFileSync(ip, ['link', 'add', 'rival0', 'type', 'bridge']);
  execFileSync(ip, ['addr', 'add', '10.80.0.1/24', 'dev', 'rival0']);
  execFileSync(ip, ['link', 'set', 'rival0', 'up']);
  const outside = join(folder, 'outside');
  const inside = join(folder, 'inside');
  writeFileSync(
    outside,
    `link add rival-h type veth peer name eth0 netns ${NAMESPACE}\nlink set rival-h master rival0 up\n`,
  );
  writeFileSync(
    inside,
    [
      'link set lo up',
      'addr add 10.80.0.2/24 dev eth0',
      'link set eth0 up',
      'route add default via 10.80.0.1',
      '',
    ].join('\n'),
  );
  return {
    name: 'ip -batch, twice',
    attach: () => {
      execFileSync(ip, ['-batch', outside]);
      execFileSync(ip, ['-n', NAMESPACE, '-batch', inside]);
    },
    detach: () => execFileSync(ip, ['link', 'delete', 'rival-h']),
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
  const run = (command: string): void => {
    execFileSync(join(CNI_FOLDER, 'bridge'), {
      input: config,
      env: {
        CNI_COMMAND: command,
        CNI_CONTAINERID: 'bench',
        CNI_NETNS: PATH,
        CNI_IFNAME: 'eth0',
        CNI_PATH: CNI_FOLDER,
        PATH: process.env['PATH'] ?? '',
      },
    });
  };
  return { name: 'CNI bridge + host-local', attach: () => run('ADD'), detach: () => run('DEL') };
}
