import { once } from 'node:events';
import { readFileSync, rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { until } from '../support/agent.ts';
import { startHost, type Stack } from './host.ts';
import { quantile, type Table } from './figures.ts';
import { attachMany, attachVms, networksFor, untilQuiet, WIDE } from './many.ts';
import type { Sizes } from './sizes.ts';

const PROBE = new URL('./loop-probe.ts', import.meta.url).pathname;
const PROBE_FILE = '/run/volt-bench-probe';
const ROUNDS = 5;
const IDLE_MS = 2_000;
const AGAIN_MS = 1_000;
/** All rounds together fit on one bridge. */
const PER_ROUND = 200;
const PATIENT = { timeoutMs: 60_000 };
/** What a request may hold the loop, and what another caller's `get` may wait. */
const HELD_MS = 20;
const GET_MS = 10;

export interface Held {
  readonly heldMs: number;
  /** Of the longest hold: what the thread itself has used. The rest is of others on the machine. */
  readonly cpuMs: number;
  readonly rssMiB: number;
  /** What the heap and its buffers hold; of `WEIGHED` agents, after a full collection. */
  readonly keptMiB: number;
}

/** The environment of an agent that `held` can ask for its memory. */
export const WEIGHED = { NODE_OPTIONS: `--import=${PROBE}`, VOLT_BENCH_PROBE: PROBE_FILE };
/** And for its event loop, which takes some processor time. */
export const PROBED = { ...WEIGHED, VOLT_BENCH_LOOK: '1' };

/** How long the loop of a probed agent was held since it was asked last. */
export async function held(pid: number): Promise<Held> {
  rmSync(PROBE_FILE, { force: true });
  process.kill(pid, 'SIGUSR2');
  let line = '';
  await until('the probe answers', () => {
    line = readFileSync(PROBE_FILE, 'utf8');
    return line.endsWith('\n');
  });
  return JSON.parse(line) as Held;
}

/** How long the agent's event loop is held on a host with very many attachments, and what another caller waits then. */
export async function benchLoop({ attachments, attaches }: Sizes): Promise<Table[]> {
  const networks = networksFor(attachments);
  await using stack = await startHost({ networks: [...networks, WIDE], env: PROBED });
  const { agent, client, host } = stack;
  await attachMany(stack, networks, attachments);
  await untilQuiet(stack);
  await using gets = new Gets(stack);
  let round = 0;
  const loads: Readonly<Record<string, () => Promise<unknown>>> = {
    idle: () => sleep(IDLE_MS),
    'attaches, 32 in flight': () => {
      round += 1;
      const order = { prefix: `l${round}-`, count: Math.min(PER_ROUND, attaches), limit: 32 };
      return attachVms(stack, [WIDE], order);
    },
    list: () => again(() => client.list(host, {}, PATIENT)),
    check: () => again(() => client.check(host, {}, PATIENT)),
  };
  const seen = new Map<string, { held: number[]; gets: number[] }>();
  for (const [name, load] of Object.entries(loads)) {
    const figures = { held: new Array<number>(), gets: new Array<number>() };
    for (let n = 0; n < ROUNDS; n += 1) {
      await sleep(200);
      await held(agent.pid);
      await gets.times();
      await load();
      figures.gets.push(...(await gets.times()));
      figures.held.push((await held(agent.pid)).cpuMs);
    }
    seen.set(name, figures);
  }
  const names = Object.keys(loads);
  const of = (name: string) => seen.get(name) ?? { held: [], gets: [] };
  return [
    {
      name: 'loop',
      title: `The event loop with ${attachments.toLocaleString('en')} attachments`,
      how:
        `${ROUNDS} times each, lists and checks one after the other for a second: the longest turn of the agent's event ` +
        'loop, as processor time of its thread, and the `get`s of another caller meanwhile, one every few milliseconds, ' +
        'from a thread of its own.',
      decisive: [
        ...names.map((name) => ({
          name: `loop held, ${name}`,
          unit: 'ms',
          values: [Math.max(...of(name).held)],
          bound: HELD_MS,
        })),
        ...names.map((name) => ({
          name: `p99 of get beside ${name}`,
          unit: 'ms',
          values: [quantile(of(name).gets, 0.99)],
          bound: GET_MS,
        })),
      ],
      shown: [
        ...names.map((name) => ({
          name: `get beside ${name}`,
          unit: 'ms',
          values: of(name).gets,
        })),
        ...names.map((name) => ({
          name: `longest turn, ${name}`,
          unit: 'ms',
          values: of(name).held,
        })),
      ],
    },
  ];
}

/** One after the other, for so long that another caller asks often meanwhile. */
async function again(work: () => Promise<unknown>): Promise<void> {
  const end = performance.now() + AGAIN_MS;
  while (performance.now() < end) await work();
}

/** The thread of get-probe.ts. */
class Gets implements AsyncDisposable {
  readonly #worker: Worker;

  constructor({ nats, host }: Stack) {
    const workerData = { url: nats.url, host, id: 'b1' };
    this.#worker = new Worker(new URL('./get-probe.ts', import.meta.url), { workerData });
  }

  /** How long each took since this was asked last, in milliseconds. */
  async times(): Promise<number[]> {
    return this.#ask('times');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const exited = once(this.#worker, 'exit');
    await this.#ask('end');
    await exited;
  }

  async #ask(word: 'times' | 'end'): Promise<number[]> {
    const answered = once(this.#worker, 'message');
    this.#worker.postMessage(word, []);
    const [times] = (await answered) as [number[]];
    return times;
  }
}
