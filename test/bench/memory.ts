import { connect, headers, type NatsConnection } from 'nats';
import { fileURLToPath } from 'node:url';
import { VoltNetworkClient } from '#protocol/client.ts';
import { type RunningAgent, startAgent } from '../support/agent.ts';
import { startNats, startRedis } from '../support/servers.ts';
import { HEARTBEAT_SECONDS, REDIS_ARGS } from './host.ts';
import type { Figure, Table } from './figures.ts';
import { residentMiBOf } from './many.ts';
import type { Sizes } from './sizes.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const BLOCKS = 6;
const IN_FLIGHT = 32;
/** Attaches one at a time, after each block. */
const TIMED = 20;
const OPERATIONS = ['attach', 'detach', 'get', 'list', 'check', 'update'] as const;

/** An agent, and what was measured of it. */
interface Subject {
  readonly name: string;
  readonly agent: RunningAgent;
  readonly network: string;
  readonly times: number[];
  readonly residentMiB: number[];
}

/**
 * What of the machine's memory an agent keeps: fresh, after attaches and detaches, and after messages that are none. What
 * is more than at the start is garbage that waits for V8's next full collection: old objects, 30 to 70 MiB of them, and
 * the buffers of large messages, up to 64 MiB.
 * Beside the agent as installed one without what its launcher sets, in the same run, block by block.
 */
export async function benchMemory(sizes: Sizes): Promise<Table[]> {
  const { cycles: count, badMessages: bad } = sizes;
  const [nats, redis] = await Promise.all([startNats(), startRedis({ args: REDIS_ARGS })]);
  const connection = await connect({ servers: nats.url });
  const client = new VoltNetworkClient({ connection, headers, timeoutMs: 60_000 });
  // $0 is the launcher that the fixture would have run.
  const bare = ['sh', '-c', `exec ${ROOT}deploy/bin/node ${ROOT}agent/start.js "$@"`];
  const subjects: Subject[] = [];
  for (const [n, name] of ['as installed', 'without its settings'].entries()) {
    const agent = await startAgent({
      config: {
        host: `h${n}`,
        heartbeatSeconds: HEARTBEAT_SECONDS,
        nats: { url: nats.url },
        redis: { url: redis.url },
        nftablesTable: `volt${n}`,
      },
      ...(n === 1 && { wrap: bare }),
    });
    await agent.ready();
    const network = `n${n}`;
    await client.putNetwork({
      network,
      subnet: `10.${40 + n}.0.0/16`,
      gateway: `10.${40 + n}.0.1`,
    });
    subjects.push({ name, agent, network, times: [], residentMiB: [] });
  }
  note(subjects);
  for (let block = 0; block < BLOCKS; block += 1) {
    // In both orders: whoever has just worked is warm, and whoever is second finds the servers so.
    const order = block % 2 === 0 ? subjects : subjects.toReversed();
    for (const one of order) await cycles(client, one, count / BLOCKS);
    await attachInTurn(client, subjects);
  }
  note(subjects);
  for (const share of [1, 2]) {
    for (const { agent } of subjects) await badMessages(connection, agent.host, bad / 2);
    if (share === 1) note(subjects);
  }
  note(subjects);
  for (const { agent } of subjects) await agent.stop();
  await connection.close();
  await Promise.all([nats.stop(), redis.stop()]);
  return tables(subjects, sizes);
}

function note(subjects: readonly Subject[]): void {
  for (const { agent, residentMiB } of subjects) {
    residentMiB.push(residentMiBOf(agent.pid));
  }
}

let attached = 0;

async function cycle(client: VoltNetworkClient, { agent, network, times }: Subject, timed = false) {
  attached += 1;
  const id = `m${attached}`;
  const started = performance.now();
  await client.attach(agent.host, { id, workload: `vm-${id}`, kind: 'vm', network });
  if (timed) times.push(performance.now() - started);
  await client.detach(agent.host, { id });
}

async function cycles(client: VoltNetworkClient, subject: Subject, count: number): Promise<void> {
  let left = count;
  const one = async (): Promise<void> => {
    for (; left > 0; await cycle(client, subject)) left -= 1;
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, one));
}

async function attachInTurn(
  client: VoltNetworkClient,
  subjects: readonly Subject[],
): Promise<void> {
  for (let n = 0; n < TIMED; n += 1) {
    const order = n % 2 === 0 ? subjects : subjects.toReversed();
    for (const one of order) await cycle(client, one, true);
  }
}

/** Each is answered before more than a few follow: what is measured is what stays, not a backlog. */
async function badMessages(connection: NatsConnection, host: string, count: number): Promise<void> {
  let left = count;
  const one = async (): Promise<void> => {
    while (left > 0) {
      left -= 1;
      const operation = OPERATIONS[left % OPERATIONS.length];
      const subject = `volt.net.v1.host.${host}.${operation}`;
      await connection.request(subject, badMessage(left), { timeout: 60_000 });
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, one));
}

/** Of all sizes: no MessagePack, too deep, text that is none, of the wrong shape, nothing at all. */
function badMessage(n: number): Uint8Array {
  const kinds = [
    () => Buffer.from([0xc1, n % 256]),
    () => Buffer.alloc(20 + (n % 3_000), 0x91),
    () => Buffer.from([0x81, 0xa2, 0x69, 0x64, 0xa2, 0xc3, 0x28]),
    () => Buffer.alloc(1 + (n % 60_000), n % 256),
    () => Buffer.concat([Buffer.from([0x81, 0xda, 0x40, 0]), Buffer.alloc(16_385, 0x61)]),
    () => Buffer.alloc(0),
  ];
  return kinds[n % kinds.length]?.() ?? Buffer.alloc(0);
}

/** Of the agent as installed; the other one is what its settings are held against. */
function tables(subjects: readonly Subject[], { cycles: count, badMessages: bad }: Sizes): Table[] {
  const [installed, bare] = subjects;
  if (installed === undefined || bare === undefined) return [];
  const moments = [
    'fresh',
    `after ${count} attaches and detaches`,
    `after ${bad / 2} bad messages`,
    `after ${bad} bad messages`,
  ];
  const [fresh = 0, cycled = 0, , end = 0] = installed.residentMiB;
  const resident = ({ name, residentMiB }: Subject): Figure[] =>
    moments.map((moment, n) => ({
      name: `${name}, ${moment}`,
      unit: 'MiB',
      values: [residentMiB[n] ?? Number.NaN],
    }));
  return [
    {
      name: 'memory',
      title: 'Resident memory',
      how:
        'Of an agent as installed, and of one without what its launcher sets, block by block in turns. What is more ' +
        "than at the start is garbage that waits for V8's next full collection.",
      decisive: [
        { name: 'fresh', unit: 'MiB', values: [fresh], bound: 110 },
        {
          name: `more after ${count} attaches and detaches`,
          unit: 'MiB',
          values: [cycled - fresh],
          bound: 20,
        },
        { name: 'after bad messages / fresh', unit: 'ratio', values: [end / fresh], bound: 1.9 },
        {
          name: 'after bad messages / without its settings',
          unit: 'ratio',
          values: [end / (bare.residentMiB[3] ?? Number.NaN)],
          bound: 0.85,
        },
      ],
      shown: [...resident(installed), ...resident(bare)],
    },
    {
      name: 'memory-attach',
      title: 'An attach of an agent with its settings, and without',
      how: 'VMs, one at a time, in turns with the blocks above.',
      decisive: [],
      shown: subjects.map(({ name, times }) => ({ name, unit: 'ms', values: times })),
    },
  ];
}
