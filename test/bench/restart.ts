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
import { type Stack, startStack } from '../support/stack.ts';
import { printFloors, timed } from './figures.ts';

const ATTACHMENTS = Number(process.env['VOLT_BENCH_ATTACHMENTS'] ?? 10_000);
/** A bridge holds 1,023 ports. */
const BRIDGES = 12;
const ROUNDS = 3;
const IN_FLIGHT = 256;
const GROUP = 0x766f6c74;
const BARE_GROUP = 77;
const PATIENCE_MS = 600_000;

/**
 * An agent that starts on a host with very many attachments: until it is sure that all agrees, and until it has made
 * everything again where nothing is left; beside the latter the same messages to the kernel and nothing else.
 */
export async function benchRestart(): Promise<void> {
  const networks = Array.from({ length: BRIDGES }, (_, n) => ({
    network: `n${n}`,
    subnet: `10.${60 + n}.0.0/22`,
    gateway: `10.${60 + n}.0.1`,
  }));
  await using stack = await startStack({ networks });
  const { agent } = stack;
  const attachMs = await timed(() => attachAll(stack));
  tell(`${ATTACHMENTS} attachments made in`, attachMs);

  const quiet: number[] = [];
  for (let round = 0; round < ROUNDS; round += 1) {
    const lines = await restarted(stack);
    const answered = timeOf(lines, ({ redis }) => redis === 'ready');
    const agreed = timeOf(lines, ({ agreement }) => agreement === 'agrees');
    quiet.push((agreed - answered) / 1_000);
  }

  const attachments = await everything(stack);
  await agent.kill();
  using kernel = new Kernel();
  await kernel.links.deleteGroupAsync(GROUP);
  const bareMs = bare(kernel, attachments);
  tell('bare messages', bareMs);
  await kernel.links.deleteGroupAsync(BARE_GROUP);

  const lines = await restarted(stack);
  const begun = timeOf(lines, ({ agreement }) => agreement === 'differs');
  const ended = timeOf(lines, ({ agreement }) => agreement === 'agrees');
  tell('rebuilt by the agent', ended - begun);
  printFloors([
    { what: 'agreement after restart, s', figure: Math.max(...quiet), bound: 1, sense: '<=' },
    {
      what: 'rebuilding / bare messages',
      figure: (ended - begun) / bareMs,
      bound: 1.5,
      sense: '<=',
    },
  ]);
}

async function attachAll({ client, host }: Stack): Promise<void> {
  let next = 0;
  const one = async (): Promise<void> => {
    while (next < ATTACHMENTS) {
      const n = next;
      next += 1;
      const id = `b${n}`;
      const request = { id, workload: `vm-${id}`, kind: 'vm', network: `n${n % BRIDGES}` } as const;
      await client.attach(host, request, { timeoutMs: 60_000 });
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, one));
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
    return text.slice(Math.max(0, text.lastIndexOf('"msg":"ready"')));
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

const tell = (what: string, ms: number): void => {
  process.stdout.write(`  ${what.padEnd(42)}${(ms / 1_000).toFixed(2).padStart(7)} s\n`);
};
