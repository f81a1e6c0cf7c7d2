import { Redis } from 'ioredis';
import { parseNetwork } from '#protocol/network.ts';
import { type Lease, type Ledger, type NetworkRecord, NOTHING_SEEN } from '#ipam-store/ledger.ts';
import { askFor, beatOf, enrol, openLedger, owned, ROOT } from '../ipam-store/fixture.ts';
import { type Filling, fillLedger, hostName } from '../support/filled-ledger.ts';
import { startRedis } from '../support/servers.ts';
import { median } from './figures.ts';

const BLOCKS = 25;
const A_BLOCK = 400;
/** The most that a call may cost in a full ledger, in a small one's. */
const BOUND = 1.2;

/** A ledger, what is in it, and the hosts of it that ask. */
export interface Side {
  readonly ledger: Ledger;
  readonly raw: Redis;
  readonly records: readonly NetworkRecord[];
  readonly hosts: readonly string[];
  readonly bytesALease: number;
  close(): Promise<void>;
}

/** One that is filled; 400 of its hosts may be granted leases. */
export async function sideOf(filling: Omit<Filling, 'root'>): Promise<Side> {
  const server = await startRedis();
  const raw = new Redis(server.url);
  const ledger = await openLedger(server.url);
  await enrol(ledger, 'first');
  const before = await memoryOf(raw);
  const records = await fillLedger(ledger, raw, { root: ROOT, ...filling });
  const leases = filling.hosts * filling.leasesPerHost;
  const bytesALease = ((await memoryOf(raw)) - before) / leases;
  const roster = Number(await raw.hget(`${ROOT}:meta`, 'roster'));
  const hosts = Array.from({ length: A_BLOCK }, (_, n) => hostName((n * 7_919) % filling.hosts));
  for (const host of hosts) {
    await ledger.heartbeat(beatOf(host, { seen: { ...NOTHING_SEEN, roster } }));
  }
  const close = async (): Promise<void> => {
    await ledger.close();
    raw.disconnect();
    await server.stop();
  };
  return { ledger, raw, records, hosts, bytesALease, close };
}

/** What acquires and releases cost Redis in two ledgers, in turn, by its own sums. */
export async function compareGrants(small: Side, full: Side): Promise<void> {
  for (const [what, asksOf] of PATTERNS) {
    const sides = [await blocksOf(small, asksOf), await blocksOf(full, asksOf)] as const;
    for (let block = 0; block < BLOCKS; block += 1) for (const side of sides) await side.next();
    for (const work of ['acquire', 'release'] as const) {
      const [ofSmall, ofFull] = sides.map(({ costs }) => costs[work]);
      if (ofSmall !== undefined && ofFull !== undefined) print(`${work}: ${what}`, ofSmall, ofFull);
    }
  }
}

function print(what: string, ofSmall: readonly number[], ofFull: readonly number[]): void {
  const ratio = median(ofFull) / median(ofSmall);
  const least = Math.min(...ofFull) / Math.min(...ofSmall);
  const figures = [ofSmall, ofFull].map(
    (costs) => `${median(costs).toFixed(0)} (${Math.min(...costs).toFixed(0)}) us`,
  );
  process.stdout.write(
    `  ${what.padEnd(48)}${figures.map((text) => text.padStart(14)).join('')}` +
      `${ratio.toFixed(2).padStart(7)} (${least.toFixed(2)})  ${ratio <= BOUND ? 'met' : `MISSED, ${BOUND}`}\n`,
  );
}

type Asks = (n: number) => { readonly host: string; readonly record: NetworkRecord };

const PATTERNS: readonly (readonly [what: string, asksOf: (side: Side) => Promise<Asks>])[] = [
  [
    'one host, one network',
    async ({ ledger, hosts: [host = ''] }) => {
      const subnet = '192.168.0.0/18';
      const record = await ledger.putNetwork(parseNetwork({ network: 'one', subnet }));
      return () => ({ host, record });
    },
  ],
  [
    'one host after another, each in another network',
    async ({ hosts, records }) =>
      (n) => {
        const [host, record] = [hosts[n % hosts.length], records[(n * 37) % records.length]];
        if (host === undefined || record === undefined) throw new Error('an empty ledger');
        return { host, record };
      },
  ],
];

interface Blocks {
  readonly costs: { readonly acquire: number[]; readonly release: number[] };
  next(): Promise<void>;
}

async function blocksOf(side: Side, asksOf: (side: Side) => Promise<Asks>): Promise<Blocks> {
  const { ledger, raw } = side;
  const asks = await asksOf(side);
  const costs: Blocks['costs'] = { acquire: [], release: [] };
  let asked = 0;
  const next = async (): Promise<void> => {
    const leases: Lease[] = [];
    const acquire = await usPerCall(raw, async () => {
      for (let n = 0; n < A_BLOCK; n += 1, asked += 1) {
        const { host, record } = asks(n);
        const id = `${record.network.network}-${asked}`;
        const request = askFor(record, id, { host, machineId: `machine-${host}` });
        leases.push((await ledger.acquire(request)).lease);
      }
    });
    const release = await usPerCall(raw, async () => {
      for (const lease of leases) await ledger.release({ ...owned(lease), cool: true });
    });
    // What is there for the first time is not counted.
    if (asked === A_BLOCK) return;
    costs.acquire.push(acquire);
    costs.release.push(release);
  };
  return { costs, next };
}

async function usPerCall(raw: Redis, work: () => Promise<void>): Promise<number> {
  await raw.config('RESETSTAT');
  await work();
  const stats = await raw.info('commandstats');
  return Number(/^cmdstat_fcall:.*usec_per_call=([\d.]+)/m.exec(stats)?.[1]);
}

async function memoryOf(raw: Redis): Promise<number> {
  return Number(/used_memory:(\d+)/.exec(await raw.info('memory'))?.[1]);
}
