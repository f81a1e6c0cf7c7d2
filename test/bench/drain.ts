import { execFileSync } from 'node:child_process';
import { connect, headers } from 'nats';
import { VoltNetworkClient } from '#protocol/client.ts';
import { startHost, type Stack } from './host.ts';
import { requireTool } from '../support/tools.ts';
import { inTurns, quantile, type Table, timed } from './figures.ts';
import { Floor } from './floor.ts';
import { attachVms, cycleMany, detachVms, networksFor, untilNone } from './many.ts';
import type { Sizes } from './sizes.ts';

const WARM_UP = 400;
/** Each takes 16 ms and more, whatever else is there: these few stand for all. */
const DELETED_BY_IP = 32;
/** Of what `ip link del` takes, what a detach may. */
const SHARE = 1 / 18;
/** A network for those that are attached meanwhile. */
const ANOTHER = { network: 'another', subnet: '10.50.0.0/16', gateway: '10.50.0.1' };
const IDLE_ATTACHES = 200;

type Client = Pick<Stack, 'client' | 'host'>;
type Note = (what: string, value: number) => void;

/** Very many detaches at once: how long each takes, and what an attach meanwhile takes. */
export async function benchDrain(sizes: Sizes): Promise<Table[]> {
  const { turns: rounds, detaches, drained } = sizes;
  // Twice as many as are there at a time: an address is not given again at once.
  const networks = networksFor(2 * rounds * (detaches + 2 * drained));
  await using stack = await startHost({ networks: [...networks, ANOTHER] });
  await using floor = new Floor();
  await cycleMany(stack, ANOTHER.network, WARM_UP);
  const connection = await connect({ servers: stack.nats.url });
  const other = { client: new VoltNetworkClient({ connection, headers }), host: stack.host };
  const rivals = [
    { name: 'agent', turn: (note: Note) => allAtOnce(stack, networks, detaches, note) },
    { name: 'ip link del', turn: (note: Note) => byIp(floor, detaches, note) },
    { name: 'idle', turn: (note: Note) => attachesAlone(other, IDLE_ATTACHES / rounds, note) },
    {
      name: 'another caller',
      turn: (note: Note) => attachesBeside(stack, other, { networks, count: drained }, note),
    },
    {
      name: 'the same caller',
      turn: (note: Note) => attachesBeside(stack, stack, { networks, count: drained }, note),
    },
  ];
  const turns = await inTurns(rivals, rounds, (rival, note) => rival.turn(note));
  await connection.close();
  const times = (rival: string) => turns.values('attach', rival);
  const idle = quantile(times('idle'), 0.99);
  const each = (what: string) => ({
    name: `${what}, each / ip link del`,
    unit: 'ratio',
    values: turns.values(what, 'agent').map((ms) => ms / byIpMs),
    bound: SHARE,
  });
  const byIpMs = quantile(turns.values('deleted', 'ip link del'), 0.5);
  const whose = ['another caller', 'the same caller'];
  return [
    {
      name: 'drain',
      title: `${detaches} detaches at once`,
      how:
        `${rounds} rounds. ${detaches} VMs are detached at once: the time until all are answered, and until nothing of ` +
        `them is left, divided by their number. Beside it \`ip link del\` of ${DELETED_BY_IP} TAPs, one after the ` +
        'other, where as many stand.',
      decisive: [each('answered'), each('gone')],
      shown: [
        ...['answered', 'gone'].map((what) => ({
          name: `${what}, each`,
          unit: 'ms',
          values: turns.values(what, 'agent'),
        })),
        { name: 'ip link del', unit: 'ms', values: turns.values('deleted', 'ip link del') },
      ],
    },
    {
      name: 'beside-drain',
      title: `An attach while ${drained} detaches drain`,
      how:
        'VMs attached one after the other from when the detaches are sent until nothing of them is left: by a client ' +
        'with a connection of its own, and by the one that detaches. Idle: the same with nothing else to do.',
      decisive: whose.map((rival) => ({
        name: `p99 of ${rival} / p99 idle`,
        unit: 'ratio',
        values: [quantile(times(rival), 0.99) / idle],
        bound: 3,
      })),
      shown: ['idle', ...whose].map((name) => ({ name, unit: 'ms', values: times(name) })),
    },
  ];
}

let given = 0;
const newPrefix = (): string => {
  given += 1;
  return `d${given}-`;
};

async function allAtOnce(
  stack: Stack,
  networks: readonly { network: string }[],
  count: number,
  note: Note,
): Promise<void> {
  const prefix = newPrefix();
  await attachVms(stack, networks, { prefix, count, limit: 64 });
  const started = performance.now();
  await detachVms(stack, { prefix, count, limit: count });
  note('answered', (performance.now() - started) / count);
  await untilNone(stack);
  note('gone', (performance.now() - started) / count);
}

async function byIp(floor: Floor, count: number, note: Note): Promise<void> {
  const ip = requireTool('ip');
  await floor.taps(count);
  for (const name of floor.lastTaps(Math.min(count, DELETED_BY_IP))) {
    note('deleted', await timed(() => execFileSync(ip, ['link', 'delete', name])));
  }
  await floor.clear();
}

async function attachesAlone(client: Client, count: number, note: Note): Promise<void> {
  const prefix = newPrefix();
  const all = { prefix, count: Math.ceil(count) };
  for (const ms of await attachVms(client, [ANOTHER], { ...all, limit: 1 })) note('attach', ms);
  await detachVms(client, all);
  await untilNone(client);
}

/** Attaches by one client while detaches of another one, or its own, drain. */
async function attachesBeside(
  stack: Stack,
  { client, host }: Client,
  { networks, count }: { networks: readonly { network: string }[]; count: number },
  note: Note,
): Promise<void> {
  const prefix = newPrefix();
  const ids: string[] = [];
  await attachVms(stack, networks, { prefix, count, limit: 64 });
  let isDraining = true;
  const draining = detachVms(stack, { prefix, count, limit: count })
    .then(() => untilNone(stack, { state: 'detaching' }))
    .finally(() => (isDraining = false));
  while (isDraining && ids.length < 1_000) {
    const id = `${prefix}x${ids.length}`;
    ids.push(id);
    const request = { id, workload: id, kind: 'vm', network: ANOTHER.network } as const;
    note('attach', await timed(() => client.attach(host, request)));
  }
  await draining;
  await Promise.all(ids.map((id) => client.detach(host, { id })));
  await untilNone(stack);
}
