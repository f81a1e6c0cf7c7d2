import { Redis } from 'ioredis';
import { parseNetwork } from '#protocol/network.ts';
import { type Ledger, type LeaseRequest, type NetworkRecord } from '#ipam-store/ledger.ts';
import { settingsOf } from '#ipam-store/client.ts';
import { beatOf, enrol, openLedger, optionsFor, owned } from '../ipam-store/fixture.ts';
import { startRedis } from '../support/servers.ts';
import { median } from './figures.ts';
import { acquireMany } from '../ipam-store/bulk.ts';

const BLOCKS = 9;
const SEQUENTIAL = 300;
const IN_FLIGHT = 500;
const RATE_REQUESTS = 4_000;
const HOST = 'h1';

/** A ratio of two medians that may not pass a bound. */
interface Floor {
  readonly what: string;
  readonly ratio: number;
  readonly bound: number;
  readonly sense: '<=' | '>=';
}

/** The ledger beside Redis INCR by the same client library; each pair of figures in turn, in blocks. */
export async function benchIpam(): Promise<void> {
  const redis = await startRedis();
  // With the ledger's own settings: command time-outs cost both the same.
  const raw = new Redis(redis.url, { ...settingsOf(optionsFor(redis.url)), lazyConnect: false });
  const ledger = await openLedger(redis.url);
  const floors: Floor[] = [];
  try {
    await enrol(ledger, HOST, 'few', 'many');
    const big = await put(ledger, 'big', '10.0.0.0/12');
    const requests = requestsIn(big, HOST);
    await blockOf(() => acquireAll(ledger, requests.next(SEQUENTIAL)), 2);

    const [acquire, incr] = await inTurn(
      () => acquireAll(ledger, requests.next(SEQUENTIAL)),
      async () => {
        for (let n = 0; n < SEQUENTIAL; n += 1) await raw.incr('bench');
      },
    );
    print('one after the other, us each', SEQUENTIAL, { acquire, incr });

    const [granted, counted] = await inTurn(
      () => flooded(requests.next(RATE_REQUESTS), (request) => ledger.acquire(request)),
      () => flooded(Array.from({ length: RATE_REQUESTS }), () => raw.incr('bench')),
    );
    print(`${IN_FLIGHT} in flight, us each`, RATE_REQUESTS, { acquire: granted, incr: counted });
    floors.push({
      what: 'rate of acquire / INCR',
      ratio: counted / granted,
      bound: 0.45,
      sense: '>=',
    });

    const empty = await put(ledger, 'empty', '10.16.0.0/16');
    const full = await put(ledger, 'full', '10.17.0.0/16');
    await fill(ledger, empty, 655);
    await fill(ledger, full, 64_880);
    floors.push(await compared(ledger, '99 % of a /16 / 1 %', 1.2, full, empty));
    const small = await put(ledger, 'small', '10.18.0.0/24');
    floors.push(await compared(ledger, '/12 / /24', 1.2, big, small, 40));

    const before = await memoryOf(raw);
    const held = await put(ledger, 'held', '10.19.0.0/16');
    await fill(ledger, held, 10_000, 'many');
    await fill(ledger, held, 10, 'few');
    const after = await memoryOf(raw);
    process.stdout.write(`\nmemory per lease: ${((after - before) / 10_010).toFixed(0)} bytes\n`);

    const beats = (host: string) => async (): Promise<void> => {
      for (let n = 0; n < 100; n += 1) await ledger.heartbeat(beatOf(host));
    };
    const [many, few] = await inTurn(beats('many'), beats('few'));
    print('heartbeat, us each', 100, { '10,000 leases': many, '10 leases': few });
    floors.push({
      what: 'heartbeat of 10,000 leases / of 10',
      ratio: many / few,
      bound: 1.2,
      sense: '<=',
    });
  } finally {
    await ledger.close();
    raw.disconnect();
    await redis.stop();
  }
  process.stdout.write('\n');
  for (const { what, ratio, bound, sense } of floors) {
    const met = sense === '<=' ? ratio <= bound : ratio >= bound;
    process.stdout.write(
      `  ${what.padEnd(42)}${ratio.toFixed(2).padStart(7)}  ${sense} ${bound}  ${met ? 'met' : 'MISSED'}\n`,
    );
  }
}

const put = (ledger: Ledger, network: string, subnet: string): Promise<NetworkRecord> =>
  ledger.putNetwork(parseNetwork({ network, subnet, reuseDelaySeconds: 0 }));

/** Requests that nobody has made before. */
function requestsIn(
  { network, revision }: NetworkRecord,
  host: string,
): { next(count: number): LeaseRequest[] } {
  let made = 0;
  return {
    next: (count) =>
      Array.from({ length: count }, () => {
        made += 1;
        const id = `${network.network}-${host}-${made}`;
        const who = { host, machineId: `machine-${host}`, bootId: 'boot-1' };
        return { id, workload: `vm-${id}`, kind: 'vm', network, revision, ...who } as const;
      }),
  };
}

async function acquireAll(ledger: Ledger, requests: readonly LeaseRequest[]): Promise<void> {
  for (const request of requests) await ledger.acquire(request);
}

async function fill(
  ledger: Ledger,
  record: NetworkRecord,
  count: number,
  host = HOST,
): Promise<void> {
  const results = await acquireMany(ledger, requestsIn(record, host).next(count));
  const failed = results.find((one) => one instanceof Error);
  if (failed instanceof Error) throw failed;
}

/** What acquiring and giving back costs in one network and in another. */
async function compared(
  ledger: Ledger,
  what: string,
  bound: number,
  one: NetworkRecord,
  other: NetworkRecord,
  count = 100,
): Promise<Floor> {
  const cycle = (record: NetworkRecord) => {
    const requests = requestsIn(record, `cycle`);
    return async (): Promise<void> => {
      const some = requests.next(count).map((request) => ({
        ...request,
        host: HOST,
        machineId: `machine-${HOST}`,
      }));
      for (const request of some) {
        const { lease } = await ledger.acquire(request);
        await ledger.release({ ...owned(lease), cool: true });
      }
    };
  };
  const [first, second] = await inTurn(cycle(one), cycle(other));
  print(`${what}: acquire and release, us each`, count, { first, second });
  return { what, ratio: first / second, bound, sense: '<=' };
}

/** All items through `work`, so many at a time. */
async function flooded<T>(items: readonly T[], work: (item: T) => Promise<unknown>): Promise<void> {
  const queue = items.values();
  const worker = async (): Promise<void> => {
    for (const item of queue) await work(item);
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, worker));
}

/** Median milliseconds of each, block by block in turn. */
async function inTurn(
  one: () => Promise<void>,
  other: () => Promise<void>,
): Promise<[number, number]> {
  const times: [number[], number[]] = [[], []];
  for (let block = 0; block <= BLOCKS; block += 1) {
    const first = await blockOf(one, 1);
    const second = await blockOf(other, 1);
    if (block === 0) continue;
    times[0].push(first);
    times[1].push(second);
  }
  return [median(times[0]), median(times[1])];
}

async function blockOf(work: () => Promise<void>, times: number): Promise<number> {
  const started = performance.now();
  for (let n = 0; n < times; n += 1) await work();
  return (performance.now() - started) / times;
}

async function memoryOf(raw: Redis): Promise<number> {
  return Number(/used_memory:(\d+)/.exec(await raw.info('memory'))?.[1]);
}

function print(title: string, count: number, figures: Readonly<Record<string, number>>): void {
  const parts = Object.entries(figures).map(
    ([name, ms]) => `${name} ${((ms * 1_000) / count).toFixed(1)}`,
  );
  process.stdout.write(`\n${title}: ${parts.join(', ')}\n`);
}
