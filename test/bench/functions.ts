import type { Redis } from 'ioredis';
import { parseNetwork } from '#protocol/network.ts';
import type { Ledger } from '#ipam-store/ledger.ts';
import { askFor, beatOf, owned } from '../ipam-store/fixture.ts';
import { hostName } from '../support/filled-ledger.ts';
import { compareGrants, type Side, sideOf } from './functions-acquire.ts';
import { acquireMany, releaseMany } from '../ipam-store/bulk.ts';

// How long each function of the ledger holds Redis, by Redis's own clock, in a ledger as large as one is meant to be.

const HOSTS = 10_000;
const LEASES_PER_HOST = 100;
const NETWORKS = 500;
/** What runs by itself may hold Redis so long, and what an operator asks for so long. */
const BY_ITSELF_MS = 5;
const ASKED_FOR_MS = 20;

interface Held {
  readonly calls: number;
  readonly meanMs: number;
  readonly maxMs: number;
  /** Of Redis's main thread, a call: on a busy machine what the clock says holds others' work too. */
  readonly cpuMs: number;
}

/** What the functions called by `work` have cost Redis. */
async function heldBy(raw: Redis, work: () => Promise<unknown>): Promise<Held> {
  await raw.config('SET', 'slowlog-max-len', '100000', 'slowlog-log-slower-than', '0');
  await raw.call('SLOWLOG', 'RESET');
  const before = await cpuMsOf(raw);
  await work();
  const cpuMs = (await cpuMsOf(raw)) - before;
  await raw.config('SET', 'slowlog-log-slower-than', '-1');
  const entries: unknown = await raw.call('SLOWLOG', 'GET', '-1');
  const times = (Array.isArray(entries) ? entries : [])
    .filter((entry): entry is unknown[] => Array.isArray(entry))
    .filter(([, , , command]) => Array.isArray(command) && /^fcall/i.test(String(command[0])))
    .map((entry) => Number(entry[2]) / 1_000);
  const totalMs = times.reduce((sum, ms) => sum + ms, 0);
  return {
    calls: times.length,
    meanMs: totalMs / Math.max(1, times.length),
    maxMs: Math.max(0, ...times),
    cpuMs: cpuMs / Math.max(1, times.length),
  };
}

async function cpuMsOf(raw: Redis): Promise<number> {
  const text = await raw.info('cpu');
  const times = text.matchAll(/^used_cpu_(?:sys|user)_main_thread:([\d.]+)/gm);
  return [...times].reduce((sum, [, seconds]) => sum + Number(seconds) * 1_000, 0);
}

function print(what: string, { calls, meanMs, maxMs, cpuMs }: Held, bound = Number.NaN): void {
  const figures = [String(calls), cpuMs.toFixed(3), meanMs.toFixed(3), maxMs.toFixed(2)];
  const verdict = Number.isNaN(bound) ? '' : maxMs <= bound ? 'met' : `MISSED, ${bound} ms`;
  process.stdout.write(
    `  ${what.padEnd(52)}${figures.map((text) => text.padStart(9)).join('')}  ${verdict}\n`,
  );
}

/** Each function of the ledger in one of 10,000 hosts and 1,000,000 leases; `npm run bench -- functions`. */
export async function benchFunctions(): Promise<void> {
  const few = { hosts: 400, leasesPerHost: 1, networks: NETWORKS };
  const small = await sideOf(few);
  const full = await sideOf({ hosts: HOSTS, leasesPerHost: LEASES_PER_HOST, networks: NETWORKS });
  try {
    process.stdout.write(
      `\n  Redis's time a call, median (least)${''.padEnd(16)}small ledger    a full one  ratio\n`,
    );
    await compareGrants(small, full);
    process.stdout.write(`\n  ${'ms'.padEnd(52)}    calls      cpu     mean      max\n`);
    await measure(full);
    process.stdout.write(`\n  memory a lease: ${full.bytesALease.toFixed(0)} bytes\n`);
  } finally {
    await small.close();
    await full.close();
  }
}

async function measure({ ledger, raw, records }: Side): Promise<void> {
  const host = hostName(4_321);
  const { epoch } = await ledger.heartbeat(beatOf(host));
  const session = { host, machineId: `machine-${host}`, epoch };
  const { leases } = await ledger.listLeases({ host });
  await row(raw, 'reassert, 100 leases kept', BY_ITSELF_MS, () =>
    ledger.reassert(session, { networks: [], leases }),
  );
  await row(raw, 'reassert, 500 networks kept', BY_ITSELF_MS, () =>
    ledger.reassert(session, { networks: records, leases: [] }),
  );
  await reserved(ledger, raw, host);
  await row(raw, 'leases, pages of all', BY_ITSELF_MS, async () => {
    let cursor: string | undefined;
    for (let page = 0; page < 40; page += 1) ({ cursor } = await ledger.listLeases({ cursor }));
  });
  await row(raw, 'leases, pages of one network', BY_ITSELF_MS, () =>
    paged((cursor) => ledger.listLeases({ network: 'net-17', cursor })),
  );
  await row(raw, 'networks, pages', BY_ITSELF_MS, () =>
    paged((cursor) => ledger.listNetworks({ cursor })),
  );
  await row(raw, 'hosts, pages', BY_ITSELF_MS, () =>
    paged((cursor) => ledger.listHosts({ cursor })),
  );
  await row(raw, 'network get', ASKED_FOR_MS, () => ledger.getNetwork('net-3'));
  await worn(ledger, raw);
  const audit = await heldBy(raw, async () => {
    const end = performance.now() + 5_000;
    for await (const _page of ledger.auditPages()) if (performance.now() > end) break;
  });
  print('audit, pages of five seconds', audit, BY_ITSELF_MS);
}

/** A network with thousands of reservations: put, read, edited, leased and re-asserted. */
async function reserved(ledger: Ledger, raw: Redis, host: string): Promise<void> {
  for (const [index, count] of [4_000, 8_000].entries()) {
    const base = index === 0 ? '172.16' : '172.17';
    const reservations = Object.fromEntries(
      Array.from({ length: count }, (_, n) => {
        const address = n * 2 + 10;
        return [`w${n}`, `${base}.${address >>> 8}.${address & 255}`] as const;
      }),
    );
    const definition = { network: `reserved-${count}`, subnet: `${base}.0.0/16`, reservations };
    const record = await row(raw, `put, ${count} reservations`, ASKED_FOR_MS, () =>
      ledger.putNetwork(parseNetwork(definition)),
    );
    const machineId = `machine-${host}`;
    const { epoch } = await ledger.heartbeat(beatOf(host));
    const granted = await acquireMany(
      ledger,
      Array.from({ length: 100 }, (_, n) =>
        askFor(record, `r-${count}-${n}`, {
          host,
          machineId,
          ...(n < 50 && { workload: `w${n}` }),
        }),
      ),
    );
    const leases = granted.flatMap((one) => ('lease' in one ? [one.lease] : []));
    if (leases.length < 100)
      throw new Error(JSON.stringify(granted.find((one) => !('lease' in one))));
    const session = { host, machineId, epoch };
    await row(raw, `reassert, 100 leases kept, ${count} reservations`, BY_ITSELF_MS, () =>
      ledger.reassert(session, { networks: [], leases }),
    );
    for (const lease of leases) await ledger.release({ ...owned(lease), machineId, cool: false });
    await row(raw, `reassert, 100 leases restored, ${count} reservations`, BY_ITSELF_MS, () =>
      ledger.reassert(session, { networks: [], leases }),
    );
    await row(raw, `reassert of the network, ${count} reservations`, BY_ITSELF_MS, () =>
      ledger.reassert(session, { networks: [record], leases: [] }),
    );
    await row(raw, `get, ${count} reservations`, ASKED_FOR_MS, () =>
      ledger.getNetwork(record.network.network),
    );
    const edited = parseNetwork({ ...definition, reuseDelaySeconds: 31 });
    await row(raw, `put, another reuse delay, ${count} reservations`, ASKED_FOR_MS, () =>
      ledger.putNetwork(edited, record.revision),
    );
    for (const lease of leases) await ledger.release({ ...owned(lease), machineId, cool: true });
    await row(raw, `delete, ${count} reservations`, ASKED_FOR_MS, () =>
      ledger.deleteNetwork(record.network.network),
    );
  }
}

/** A network of which 60,000 addresses were used. */
async function worn(ledger: Ledger, raw: Redis): Promise<void> {
  const definition = { network: 'worn', subnet: '172.20.0.0/16', reuseDelaySeconds: 3_600 };
  const record = await ledger.putNetwork(parseNetwork(definition));
  for (let from = 0; from < 60; from += 1) {
    const asks = Array.from({ length: 1_000 }, (_, n) =>
      askFor(record, `worn-${from}-${n}`, { host: 'first' }),
    );
    const granted = await acquireMany(ledger, asks);
    const leases = granted.flatMap((one) => ('lease' in one ? [one.lease] : []));
    await releaseMany(
      ledger,
      leases.map((lease) => ({ ...owned(lease), cool: true })),
    );
  }
  const pool = { start: '172.20.0.10', end: '172.20.200.0' };
  const smaller = await row(raw, 'put, a pool made smaller, 60,000 used', ASKED_FOR_MS, () =>
    ledger.putNetwork(parseNetwork({ ...definition, pool }), record.revision),
  );
  await row(raw, 'put, a pool made larger, 60,000 used', ASKED_FOR_MS, () =>
    ledger.putNetwork(parseNetwork(definition), smaller.revision),
  );
  await row(raw, 'delete, 60,000 used', ASKED_FOR_MS, () => ledger.deleteNetwork('worn'));
}

async function row<T>(raw: Redis, what: string, bound: number, work: () => Promise<T>): Promise<T> {
  let result: Promise<T> | undefined;
  print(what, await heldBy(raw, () => (result = work())), bound);
  return result ?? work();
}

async function paged(
  read: (cursor: string | undefined) => Promise<{ readonly cursor?: string }>,
): Promise<void> {
  let cursor: string | undefined;
  do ({ cursor } = await read(cursor));
  while (cursor !== undefined);
}
