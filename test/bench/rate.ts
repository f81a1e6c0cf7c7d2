import { setTimeout as sleep } from 'node:timers/promises';
import { startHost, type Stack } from './host.ts';
import { type Figure, inTurns, quantile, type Table, type Turns } from './figures.ts';
import { Floor } from './floor.ts';
import { attachVms, cpuMsOf, cycleMany, detachVms, inFlight, untilNone, WIDE } from './many.ts';
import type { Sizes } from './sizes.ts';

const WARM_UP = 400;
const C = 'C, one by one';
const JOBS = 'as jobs, until the event';
/** Jobs that are being stored at a time. */
const SUBMITTED = 32;
const PATIENCE_MS = 60_000;
/** Attaches in flight, and the least share of C's rate. */
const BOUNDS = [
  [1, 0.3],
  [8, 0.5],
  [32, 0.5],
  [128, 0.5],
] as const;

type Note = (what: string, value: number) => void;

interface Rival {
  readonly name: string;
  readonly turn: (note: Note) => Promise<void>;
}

/**
 * VMs attached many at once, and as jobs, by one caller: how many a second, how long each waits, and what of a processor
 * the agent needs for one. Servers, client and agent share the machine, so that the rate is what is left of it.
 */
export async function benchRate({ turns: rounds, attaches }: Sizes): Promise<Table[]> {
  await using stack = await startHost({ networks: [WIDE] });
  await using floor = new Floor();
  await cycleMany(stack, WIDE.network, WARM_UP);
  /** C first, the agent right after it: the ratio is of two that are next to each other. */
  const beside =
    (turn: (note: Note) => Promise<void>): Rival['turn'] =>
    async (note) => {
      const c = attaches / (await floor.taps(attaches));
      await floor.clear();
      note('C', c);
      await turn((what, value) => {
        note(what, value);
        if (what === 'rate') note('share', value / c);
      });
    };
  const agents = BOUNDS.map(([limit]) => ({
    name: nameOf(limit),
    turn: beside((note) => manyAtOnce(stack, { count: attaches, limit }, note)),
  }));
  const rivals: Rival[] = [
    ...agents,
    { name: JOBS, turn: beside((note) => asJobs(stack, attaches, note)) },
  ];
  const turns = await inTurns(rivals, rounds, (rival, note) => rival.turn(note));
  return tablesOf(turns, { rounds, attaches });
}

function tablesOf(
  turns: Turns,
  { rounds, attaches }: { rounds: number; attaches: number },
): Table[] {
  const many = BOUNDS.map(([limit]) => nameOf(limit));
  const ratio = (name: string, bound: number): Figure => ({
    ...{ name: `${name} / ${C}`, unit: 'ratio', bound, sense: '>=' },
    values: turns.values('share', name),
  });
  const at32 = quantile(turns.values('wait', nameOf(32)), 0.99);
  return [
    {
      name: 'rate',
      title: 'Attaches a second',
      how:
        `${rounds} rounds of ${attaches} TAPs, beginning with none. C has its turn right before each of this agent's, ` +
        "and makes its TAPs one after the other, beside as many of its own. This agent's client, its servers and the " +
        'agent share the machine.',
      decisive: [
        ...BOUNDS.map(([limit, bound]) => ratio(nameOf(limit), bound)),
        ratio(JOBS, 0.4),
        { name: 'p99 at 32 in flight', unit: 'ms', values: [at32], bound: 60 },
      ],
      shown: [
        ...[...many, JOBS].map((name) => ({
          name,
          unit: 'a second',
          values: turns.values('rate', name),
        })),
        {
          name: C,
          unit: 'a second',
          values: [...many, JOBS].flatMap((name) => turns.values('C', name)),
        },
      ],
    },
    {
      name: 'wait',
      title: 'How long each of many waits',
      how: 'The attaches of the same turns: from request to reply. CPU: of the agent, for each of them.',
      decisive: [],
      shown: [
        ...many.map((name) => ({ name, unit: 'ms', values: turns.values('wait', name) })),
        ...many.map((name) => ({
          name: `CPU, ${name}`,
          unit: 'ms',
          values: turns.values('cpu', name),
        })),
      ],
    },
  ];
}

const nameOf = (limit: number): string => `${limit} in flight`;

let given = 0;
const newPrefix = (): string => {
  given += 1;
  return `q${given}-`;
};

/** One turn: attached, counted, and detached again. */
export async function manyAtOnce(
  stack: Pick<Stack, 'client' | 'host' | 'agent'>,
  { count, limit, network = WIDE.network }: { count: number; limit: number; network?: string },
  note: Note,
): Promise<void> {
  const prefix = newPrefix();
  const before = cpuMsOf(stack.agent.pid);
  const started = performance.now();
  const times = await attachVms(stack, [{ network }], { prefix, count, limit });
  note('rate', (count / (performance.now() - started)) * 1_000);
  note('cpu', (cpuMsOf(stack.agent.pid) - before) / count);
  for (const ms of times) note('wait', ms);
  await detachVms(stack, { prefix, count });
  await untilNone(stack);
}

/** Stored in the work queue, some at a time, until the events of all have been seen. */
async function asJobs(stack: Stack, count: number, note: Note): Promise<void> {
  const { client, host } = stack;
  const prefix = newPrefix();
  using seen = eventsOf(stack, prefix, count);
  const started = performance.now();
  await inFlight(SUBMITTED, count, (n) => {
    const id = `${prefix}${n}`;
    return client.submitAttach(host, { id, workload: id, kind: 'vm', network: WIDE.network });
  });
  await seen.all;
  note('rate', (count / (performance.now() - started)) * 1_000);
  await detachVms(stack, { prefix, count });
  await untilNone(stack);
}

/** Resolves `all` when so many attachments of that prefix have been told of. */
function eventsOf(
  { client, host }: Stack,
  prefix: string,
  count: number,
): Disposable & { readonly all: Promise<void> } {
  const ending = new AbortController();
  const events = client.watch({ host, types: ['attached'], signal: ending.signal });
  const seen = new Set<string>();
  const watch = async (): Promise<void> => {
    for await (const { subject } of events) {
      if (subject.startsWith(prefix)) seen.add(subject);
      if (seen.size === count) return;
    }
  };
  const late = async (): Promise<never> => {
    await sleep(PATIENCE_MS, undefined, { ref: false });
    throw new Error(`${count - seen.size} of ${count} jobs have no event after a minute`);
  };
  return { all: Promise.race([watch(), late()]), [Symbol.dispose]: () => ending.abort() };
}
