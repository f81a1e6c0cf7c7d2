import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, beforeEach } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import { type Network, parseNetwork } from '#protocol/network.ts';
import {
  type Beat,
  type Lease,
  Ledger,
  type LedgerOptions,
  type LeaseRequest,
  listAfter,
  someOf,
  type NetworkRecord,
  type NetworkUsage,
  NOTHING_SEEN,
  type Pulse,
  RevisionChanged,
  type Seen,
} from '#ipam-store/ledger.ts';
import { type Server, startRedis } from '#test/support/servers.ts';

export const ROOT = 'volt:{ledger}';

export const optionsFor = (url: string, more: Partial<LedgerOptions> = {}): LedgerOptions => ({
  url,
  mode: 'single',
  nodes: null,
  masterName: null,
  username: null,
  passwordFile: null,
  tls: null,
  keyPrefix: 'volt:',
  minReplicas: 0,
  ...more,
});

/** Opens a ledger and waits until it is ready. */
export async function openLedger(url: string, more: Partial<LedgerOptions> = {}): Promise<Ledger> {
  const ledger = new Ledger(optionsFor(url, more));
  ledger.start();
  await until(() => ledger.status.state === 'ready');
  return ledger;
}

export async function until(done: () => boolean, timeoutMs = 30_000): Promise<void> {
  const end = Date.now() + timeoutMs;
  while (!done()) {
    if (Date.now() > end) throw new Error('waited in vain');
    await sleep(5);
  }
}

/** Those that may acquire at the start of each test. */
export const HOSTS = ['h1', 'h2', 'h3'] as const;

export const beatOf = (host: string, more: Partial<Beat> = {}): Beat => ({
  host,
  machineId: `machine-${host}`,
  bootId: 'boot-1',
  suspectAfterSeconds: 20,
  recoveryWindowSeconds: null,
  seen: NOTHING_SEEN,
  newFleet: true,
  ...more,
});

/** What a host has seen after an answer; what it does not know of the list of hosts it reads at once. */
export async function seenAfter(ledger: Ledger, before: Seen, pulse: Pulse): Promise<Seen> {
  const { seen, list, some, behind } = pulse;
  const news = list && listAfter(before, list);
  const isUnknown = behind || (list !== undefined && news === undefined);
  return {
    ...before,
    generation: Math.max(before.generation, seen.generation),
    revision: Math.max(before.revision, seen.revision),
    ...(some.length > 0 && someOf(some)),
    ...(isUnknown ? await ledger.readHosts(before) : news),
  };
}

/** Hosts of a fleet, new or not, say that they live and hold nothing; then they may acquire. */
export async function enrol(ledger: Ledger, ...hosts: readonly string[]): Promise<void> {
  const seen = new Map<string, Beat['seen']>();
  const beat = async (host: string): Promise<Pulse> => {
    const before = seen.get(host) ?? NOTHING_SEEN;
    const pulse = await ledger.heartbeat(beatOf(host, { seen: before }));
    seen.set(host, await seenAfter(ledger, before, pulse));
    return pulse;
  };
  for (const host of hosts) await beat(host);
  for (const host of hosts) {
    const { epoch, reassert } = await beat(host);
    const session = { host, machineId: `machine-${host}`, epoch };
    if (reassert) await ledger.reassert(session, { networks: [], leases: [] });
  }
  for (const host of hosts) await beat(host);
}

/** What a test needs of a real redis-server; emptied before each test. */
export interface Store {
  readonly server: Server;
  readonly ledger: Ledger;
  /** For looking behind the ledger's back. */
  readonly raw: Redis;
}

export function useStore(args: readonly string[] = []): Store {
  const store: { server?: Server; ledger?: Ledger; raw?: Redis } = {};
  const there = <T>(value: T | undefined): T => {
    if (value === undefined) throw new Error('the server is not started yet');
    return value;
  };
  beforeAll(async () => {
    store.server = await startRedis({ args });
    store.raw = new Redis(store.server.url);
    store.ledger = await openLedger(store.server.url);
  });
  beforeEach(async () => {
    await store.raw?.flushall();
    await enrol(there(store.ledger), ...HOSTS);
  });
  afterAll(async () => {
    await store.ledger?.close();
    store.raw?.disconnect();
    await store.server?.stop();
  });
  return {
    get server() {
      return there(store.server);
    },
    get ledger() {
      return there(store.ledger);
    },
    get raw() {
      return there(store.raw);
    },
  };
}

/** Every key with what it holds, in an order of its own. */
export async function contents(raw: Redis): Promise<Record<string, unknown>> {
  const keys = (await raw.keys('*')).toSorted();
  const read = keys.map(async (key): Promise<[string, unknown]> => {
    const type = await raw.type(key);
    if (type === 'zset') return [key, await raw.zrange(key, '0', '-1', 'WITHSCORES')];
    if (type === 'hash') return [key, { ...(await raw.hgetall(key)) }];
    if (type === 'stream') return [key, await raw.xrange(key, '-', '+')];
    return [key, type];
  });
  return Object.fromEntries(await Promise.all(read));
}

/** The same without counters, logs and names that are remembered, which only grow, and the sessions of hosts. */
export async function hostLeases(raw: Redis): Promise<Record<string, unknown>> {
  const { [`${ROOT}:leases`]: leases, ...rest } = await contents(raw);
  const entries = Object.entries(leases as Record<string, unknown>);
  const held = Object.fromEntries(entries.filter(([field]) => !field.startsWith('#')));
  const all = Object.entries(rest).filter(
    ([key]) =>
      !/:(meta|revised|changed|roster|hosts|leaving:[46]|host:[^:]+|net:[^:]+:(hosts|log))$/.test(
        key,
      ),
  );
  return { ...Object.fromEntries(all), ...(Object.keys(held).length > 0 && { leases: held }) };
}

/** The error of a call that must be refused. Throws where it is not, or where the store is not as before. */
export async function refused(raw: Redis, call: () => Promise<unknown>): Promise<Refusal> {
  const before = await contents(raw);
  const error: unknown = await call().then(
    (value) => new Error(`not refused: ${JSON.stringify(value)}`),
    (cause: unknown) => cause,
  );
  if (!(error instanceof VoltError) && !(error instanceof RevisionChanged)) throw error;
  assert.deepEqual(await contents(raw), before);
  return error;
}

type Refusal = Error & {
  readonly code: string;
  readonly details?: Readonly<Record<string, unknown>> | undefined;
  readonly retryAfterMs?: number | undefined;
};

export const VOLT0 = {
  network: 'volt0',
  subnet: '10.42.0.0/24',
  gateway: '10.42.0.1',
  pool: { start: '10.42.0.2', end: '10.42.0.254' },
  reservations: { 'vm-web': '10.42.0.10', 'container-db': '10.42.0.20' },
};

export const network = (keys: object): Network => parseNetwork(keys);

export const put = (ledger: Ledger, keys: object, revision?: number): Promise<NetworkRecord> =>
  ledger.putNetwork(network(keys), revision);

export const askFor = (
  record: NetworkRecord,
  id: string,
  more: Partial<LeaseRequest> = {},
): LeaseRequest => ({
  id,
  workload: `vm-${id}`,
  kind: 'vm',
  network: record.network,
  revision: record.revision,
  host: 'h1',
  machineId: `machine-${more.host ?? 'h1'}`,
  bootId: 'boot-1',
  ...more,
});

/** With the machine that `beatOf` and `askFor` give each host. */
export const owned = <Held extends { readonly host: string }>(
  held: Held,
): Held & { readonly machineId: string } => ({ ...held, machineId: `machine-${held.host}` });

/** Address of a lease without its prefix length; of dual stack, both. */
export const bare = ({ addresses }: Lease): string =>
  addresses.map((address) => address.replace(/\/.*/, '')).join(' ');

export interface Actions {
  /** Address granted; of dual stack, both. */
  acquire(record: NetworkRecord, id: string, more?: Partial<LeaseRequest>): Promise<string>;
  release(id: string, options?: { cool?: boolean }): Promise<void>;
  usage(name: string): Promise<NetworkUsage | undefined>;
}

/** What most tests do with a store. */
export const actionsOn = (store: Store): Actions => ({
  acquire: async (record, id, more = {}) =>
    bare((await store.ledger.acquire(askFor(record, id, more))).lease),
  release: async (id, { cool = true } = {}) => {
    const lease = await store.ledger.getLease(id);
    if (lease === null) throw new Error(`${id} has no lease`);
    assert.equal(await store.ledger.release({ ...owned(lease), cool }), 'released');
  },
  usage: async (name) => (await store.ledger.getNetwork(name))?.usage,
});

/** A network of five addresses, .2 to .6. */
export const small = (keys: object = {}): object => ({
  network: 'small',
  subnet: '10.9.0.0/29',
  gateway: '10.9.0.1',
  ...keys,
});
