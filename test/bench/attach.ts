import { startHost, type Stack } from './host.ts';
import { inTurns, type Table, type Turns } from './figures.ts';
import { Floor } from './floor.ts';
import { cycleMany, WIDE } from './many.ts';
import { agentRival, cni, floorRivals, ipBatch, netavark, type Rival, turnOf } from './rivals.ts';
import type { Sizes } from './sizes.ts';

/** The agent's code is compiled while these run. */
const WARM_UP = 400;
const CONTAINER = 'this agent, container';
const VM = 'this agent, VM';

/** One attach after the other: this agent over NATS beside everybody else who does the same. */
export async function benchAttach({ rounds, block }: Sizes): Promise<Table[]> {
  await using stack = await startHost({ networks: [WIDE] });
  await using floor = new Floor();
  const c = floorRivals(floor, block);
  const order = { network: WIDE.network, places: block };
  const agents = [
    agentRival(stack, { ...order, name: CONTAINER, kind: 'container' }),
    agentRival(stack, { ...order, name: VM, kind: 'vm' }),
  ];
  const rivals = [...agents, ...[c.tap, c.veth, ipBatch(block), cni(block), netavark(block)]];
  await cycleMany(stack, WIDE.network, WARM_UP);
  await inTurns(agents, rounds, (rival) => turnOf(rival, block, () => {}));
  const turns = await inTurns(rivals, rounds, (rival, note) => turnOf(rival, block, note));
  return [attachTable(turns, rivals, { rounds, block }), detachTable(turns, rivals)];
}

function attachTable(
  turns: Turns,
  rivals: readonly Rival[],
  { rounds, block }: Pick<Sizes, 'rounds' | 'block'>,
): Table {
  const ratio = (rival: string, base: string, bound?: number) => ({
    name: `${rival} / ${base}`,
    unit: 'ratio',
    values: turns.ratios('attach', rival, base),
    ...(bound !== undefined && { bound }),
  });
  return {
    name: 'attach',
    title: 'An attach, warm, one after the other',
    how:
      `${rounds} rounds; in each, everybody has one turn of ${block} attaches, one after the other. A ratio is the ` +
      'median over the rounds of the ratio of two medians of a turn. This agent: from the request on the bus to the ' +
      'reply, with lease, record and port filter. C: the same device by raw netlink, and nothing else. The others: ' +
      'start to end of their processes. netavark has an internal network, without a default route, since it starts ' +
      'iptables a dozen times on any other; its address is given to it.',
    decisive: [
      ratio(VM, 'C, TAP', 3),
      ratio(CONTAINER, 'C, veth pair', 2.2),
      ratio(CONTAINER, 'CNI bridge + host-local', 0.14),
      ratio(CONTAINER, 'ip -batch, twice', 0.2),
      ratio(CONTAINER, 'netavark, internal'),
    ],
    shown: rivals.map(({ name }) => ({ name, unit: 'ms', values: turns.values('attach', name) })),
  };
}

function detachTable(turns: Turns, rivals: readonly Rival[]): Table {
  const those = rivals.filter(({ detach }) => detach !== undefined);
  const others = those.map(({ name }) => name).filter((name) => ![CONTAINER, VM].includes(name));
  return {
    name: 'detach',
    title: 'A detach, one after the other',
    how:
      'The detaches of the same turns. This agent: until it has answered, when port and name are free and the rest ' +
      'is under way. The others: start to end of their processes.',
    decisive: others.map((name) => ({
      name: `${CONTAINER} / ${name}`,
      unit: 'ratio',
      values: turns.ratios('detach', CONTAINER, name),
    })),
    shown: those.map(({ name }) => ({ name, unit: 'ms', values: turns.values('detach', name) })),
  };
}

/** The first attach of an agent that has just started, which also makes the bridge of its network. */
export async function benchCold({ coldStarts }: Sizes): Promise<Table[]> {
  const names = { vm: 'cold, VM', container: 'cold, container' };
  const times = { vm: new Array<number>(), container: new Array<number>() };
  await using stack = await startHost({ networks: [WIDE] });
  // The client is warm: its code is the bench's own.
  await cycleMany(stack, WIDE.network, WARM_UP);
  for (let n = 0; n < coldStarts; n += 1) {
    for (const kind of ['vm', 'container'] as const) times[kind].push(await cold(stack, kind, n));
  }
  return [
    {
      name: 'cold',
      title: 'The first attach of an agent, cold',
      how:
        `${coldStarts} agents of each kind, started for it. Nothing of the network is on the host: the attach also ` +
        'reads the network, makes its bridge and its rules, and runs code that was never run.',
      decisive: [],
      shown: (['vm', 'container'] as const).map((kind) => ({
        name: names[kind],
        unit: 'ms',
        values: times[kind],
      })),
    },
  ];
}

async function cold(stack: Stack, kind: 'vm' | 'container', n: number): Promise<number> {
  const network = `${kind === 'vm' ? 'v' : 'c'}${n}`;
  const octet = 50 + n * 2 + (kind === 'vm' ? 0 : 1);
  await stack.client.putNetwork({
    network,
    subnet: `10.${octet}.0.0/24`,
    gateway: `10.${octet}.0.1`,
  });
  await stack.agent.restart();
  await stack.agent.ready();
  const rival = agentRival(stack, { name: network, kind, network, places: 1 });
  const ms = await rival.attach(0);
  await rival.detach?.(0);
  await rival.settle?.();
  return ms;
}
