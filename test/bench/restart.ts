import { readFileSync } from 'node:fs';
import { hostEndMac, MacAddress } from '#protocol/address.ts';
import type { Attachment } from '#protocol/attachment.ts';
import { Kernel } from '#agent/host/kernel.ts';
import {
  BRIDGE_FILTER,
  bridgePortFacts,
  FILTERED_GROUPS,
} from '#agent/host/firewall/port-filter.ts';
import { rulesText } from '#agent/host/firewall/ruleset.ts';
import { type ElementChange, Nftables } from '#native/nftables.ts';
import { writeSysctl } from '#native/sysctl.ts';
import { createTap } from '#native/tun.ts';
import { until } from '../support/agent.ts';
import { startHost, type Stack } from './host.ts';
import { type Table, timed } from './figures.ts';
import { attachMany } from './many.ts';
import type { Sizes } from './sizes.ts';

/** A bridge holds 1,023 ports. */
const BRIDGES = 12;
const ROUNDS = 5;
const TICK_MS = 10;
const GROUP = 0x766f6c74;
const BARE_GROUP = 77;
const PATIENCE_MS = 600_000;

/**
 * An agent that starts on a host with very many attachments: until it is sure that all agrees, and until it has made
 * everything again where nothing is left; beside the latter the same messages to the kernel and nothing else.
 */
export async function benchRestart({ attachments: count }: Sizes): Promise<Table[]> {
  const networks = Array.from({ length: BRIDGES }, (_, n) => ({
    network: `n${n}`,
    subnet: `10.${60 + n}.0.0/22`,
    gateway: `10.${60 + n}.0.1`,
  }));
  await using stack = await startHost({ networks });
  const { agent } = stack;
  const made = (await timed(() => attachMany(stack, networks, count))) / 1_000;
  const ready: number[] = [];
  const agreement: number[] = [];
  const whole: number[] = [];
  for (let round = 0; round < ROUNDS; round += 1) {
    const lines = await restarted(stack);
    const begun = startOf(agent.pid);
    const agreed = timeOf(lines, (line) => line['agreement'] === 'agrees');
    ready.push((timeOf(lines, ({ msg }) => msg === 'ready') - begun) / 1_000);
    agreement.push((agreed - timeOf(lines, ({ redis }) => redis === 'ready')) / 1_000);
    whole.push((agreed - begun) / 1_000);
  }

  const attachments = await everything(stack);
  await agent.kill();
  using kernel = new Kernel();
  await kernel.links.deleteGroupAsync(GROUP);
  const bareSeconds = bare(kernel, attachments) / 1_000;
  await kernel.links.deleteGroupAsync(BARE_GROUP);

  const lines = await restarted(stack);
  const differed = timeOf(lines, (line) => line['agreement'] === 'differs');
  const rebuilt = (timeOf(lines, (line) => line['agreement'] === 'agrees') - differed) / 1_000;
  const seconds = (name: string, values: number[]) => ({ name, unit: 's', values });
  return [
    {
      name: 'restart',
      title: `An agent that starts with ${count.toLocaleString('en')} attachments`,
      how:
        `${ROUNDS} starts on a host where all is as recorded. Ready: from the start of the process until its socket ` +
        'and its bus serve. Agreement: from the first answer of Redis until all records, devices and leases have been ' +
        'compared. Rebuilt: a start where no device and no bridge is left, beside the same messages to the kernel from ' +
        'a loop in Node.',
      decisive: [
        { ...seconds('ready', ready), bound: 0.5 },
        { ...seconds('in agreement with Redis', agreement), bound: 1 },
        {
          name: 'rebuilt / bare messages',
          unit: 'ratio',
          values: [rebuilt / bareSeconds],
          bound: 1.3,
        },
      ],
      shown: [
        seconds('start of the process to agreement', whole),
        seconds('rebuilt by the agent', [rebuilt]),
        seconds('bare messages', [bareSeconds]),
        seconds('attached before, 256 in flight', [made]),
      ],
    },
  ];
}

async function everything({ client, host }: Stack): Promise<Attachment[]> {
  const all: Attachment[] = [];
  let cursor: string | undefined;
  do {
    const page = await client.list(host, cursor === undefined ? {} : { cursor });
    all.push(...page.attachments);
    ({ cursor } = page);
  } while (cursor !== undefined);
  return all;
}

type Line = Readonly<Record<string, unknown>>;

/** Starts the agent anew, and answers its log once it is sure that all agrees. */
async function restarted({ agent }: Stack): Promise<readonly Line[]> {
  const before = agent.output().length;
  await agent.restart();
  // What the process of before has written last is none of it.
  const log = (): string => {
    const text = agent.output().slice(before);
    const ready = text.lastIndexOf('"msg":"ready"');
    return text.slice(Math.max(0, text.lastIndexOf('\n', ready)));
  };
  await until('the agent is sure', () => log().includes('"agreement":"agrees"'), PATIENCE_MS);
  return log()
    .split('\n')
    .filter((line) => line.startsWith('{') && line.endsWith('}'))
    .map((line) => JSON.parse(line) as Line);
}

function timeOf(lines: readonly Line[], which: (line: Line) => boolean): number {
  const found = lines.find(which);
  if (found === undefined) throw new Error('the agent has not said so');
  return Date.parse(String(found['time']));
}

/** What the kernel has to be told for these TAPs, prepared beforehand, on bridges that are there. */
function bare(kernel: Kernel, attachments: readonly Attachment[]): number {
  using nftables = Nftables.open();
  const table = { family: BRIDGE_FILTER.family, name: 'bare' };
  nftables.makeTables([table], { exclusive: true });
  nftables.run(rulesText(BRIDGE_FILTER, table.name));
  const bridges = new Map<string, number>();
  for (let n = 0; n < BRIDGES; n += 1) {
    const made = kernel.links.createBridge({ name: `n${n}`, group: BARE_GROUP });
    kernel.links.set(made, { up: true });
    bridges.set(made.name, made.index);
  }
  const orders = attachments.map(({ id, mac, addresses, device }) => {
    const { name, bridge = '', mtu } = device ?? { name: '', mtu: 1_500 };
    const facts = bridgePortFacts({
      device: name,
      mac,
      addresses: addresses.map(({ address }) => address),
      linkLocal: 'eui64',
    });
    const elements = facts.flatMap((fact): ElementChange[] => {
      const declaration = fact.kind === 'element' ? fact.ruleset.sets[fact.set] : undefined;
      if (fact.kind !== 'element' || declaration === undefined) return [];
      return [{ action: 'add', table, set: fact.set, declaration, elements: [fact.element] }];
    });
    return {
      name,
      own: MacAddress.parse(mac),
      elements,
      change: {
        mac: hostEndMac(MacAddress.parse(mac)),
        mtu,
        master: bridges.get(bridge) ?? 0,
        group: BARE_GROUP,
        alias: `bare:${id}`,
      },
    };
  });
  const started = performance.now();
  for (const { name, own, elements, change } of orders) {
    using tap = createTap({ name, queues: 1, vnetHdr: true });
    const index = kernel.links.indexOf(name) ?? 0;
    kernel.links.set(index, change);
    writeSysctl(['net', 'ipv6', 'conf', name, 'disable_ipv6'], '1');
    nftables.change(elements);
    const settings = { IFLA_BRPORT_GROUP_FWD_MASK: FILTERED_GROUPS, IFLA_BRPORT_LEARNING: 0 };
    kernel.batch([
      kernel.links.bridgePortChange(index, settings),
      kernel.neighbours.forwardingAddition({ ifindex: index, mac: own, fixed: true }),
    ]);
    kernel.links.set(index, { up: true });
    tap.persist();
  }
  const ms = performance.now() - started;
  nftables.run(`delete table ${table.family} ${table.name}`);
  return ms;
}

/** When a process was started (proc_pid_stat(5)), as `Date.now()` counts. */
function startOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? [];
  const upMs = Number(readFileSync('/proc/uptime', 'utf8').split(' ')[0]) * 1_000;
  return Date.now() - (upMs - Number(fields[19]) * TICK_MS);
}
