import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Clocks } from '#agent/health/clocks.ts';
import { NetworkRevisions } from '#agent/fleet/network-revisions.ts';
import { Session } from '#agent/fleet/session.ts';
import { createLog } from '#agent/log.ts';
import { Standing } from '#agent/fleet/standing.ts';
import { LedgerWatermark } from '#agent/fleet/ledger-watermark.ts';
import type { Ledger, Lease, NetworkRecord } from '#ipam-store/ledger.ts';
import { VoltError } from '#protocol/errors.ts';
import { acquireMany } from '../ipam-store/bulk.ts';

export const HEARTBEAT_SECONDS = 5;
export const SUSPECT_AFTER_SECONDS = 20;
const RETRY_MS = 250;
const log = createLog('silent', 'bench');

export interface HostOptions {
  readonly host: string;
  readonly bootId: string;
  readonly ledger: Ledger;
  readonly folder: string;
  readonly suspectAfterSeconds: number;
  readonly isNewFleet: () => Promise<boolean>;
}

/**
 * What of an agent the ledger meets: session and ledger watermark are the agent's own, with a state folder on disk; of records
 * there is a list of leases. No kernel, no requests.
 */
export class SimulatedHost {
  readonly host: string;
  readonly session: Session;
  readonly watermark: LedgerWatermark;
  readonly leases = new Map<string, Lease>();
  /** Hosts that this one has told the fleet to be suspect, and leases that it saw reclaimed or let expire. */
  fallen = 0;
  reclaimed = 0;
  expired = 0;
  fenced = 0;
  readonly #options: HostOptions;
  readonly #machineId: string;
  readonly #expiring = new Set<string>();

  constructor(options: HostOptions) {
    this.#options = options;
    const { host, bootId, ledger, folder, suspectAfterSeconds } = options;
    this.host = host;
    this.#machineId = `machine-${host}`;
    const stateDir = join(folder, host);
    mkdirSync(stateDir, { recursive: true });
    this.watermark = new LedgerWatermark({ stateDir, log });
    this.watermark.load();
    const standing = new Standing();
    this.session = new Session({
      self: { host, machineId: this.#machineId, agentId: `agent-${host}`, bootId },
      heartbeatSeconds: HEARTBEAT_SECONDS,
      suspectAfterSeconds,
      recoveryWindowSeconds: null,
      ledger,
      watermark: this.watermark,
      revisions: new NetworkRevisions({
        host,
        ledger,
        watermark: this.watermark,
        apply: () => Promise.resolve(),
        bridged: () => [],
        log,
      }),
      clocks: new Clocks(),
      standing,
      followers: { follows: () => ({}), note: () => {} },
      log,
      hostLeases: {
        leases: () => [...this.leases.values()],
        lease: (id) => this.leases.get(id),
        expire: ({ id }) => this.#expire(id),
        fence: ({ id }) => {
          this.fenced += 1;
          this.leases.delete(id);
          return Promise.resolve();
        },
        settle: () => this.#settle(),
        tellEnd: () => {
          this.reclaimed += 1;
        },
      },
      events: {
        add: ({ type }) => {
          if (type === 'suspect') this.fallen += 1;
        },
      },
      isNewFleet: options.isNewFleet,
      onOpen: () => {},
    });
  }

  /** Grants so many leases to this host, the n-th in the network of its turn. */
  async hold(networks: readonly NetworkRecord[], count: number, ttlSeconds?: number) {
    const { host, ledger, bootId } = this.#options;
    const turn = Number(host.slice(1));
    const requests = Array.from({ length: count }, (_, n) => {
      const record = networks[(turn + n) % networks.length];
      if (record === undefined) throw new Error('no network to hold leases in');
      const id = `${host}-${n}`;
      return {
        id,
        workload: `vm-${id}`,
        kind: 'vm',
        network: record.network,
        revision: record.revision,
        host,
        machineId: this.#machineId,
        bootId,
        ...(ttlSeconds !== undefined && { ttlSeconds }),
      } as const;
    });
    // A repeat finds what was granted after it was given up.
    for (let open = requests; open.length > 0;) {
      const results = await acquireMany(ledger, open);
      for (const result of results) {
        if (!('lease' in result)) continue;
        this.leases.set(result.lease.id, result.lease);
        this.watermark.noteGeneration(result.lease.generation);
      }
      open = open.filter(({ id }) => !this.leases.has(id));
      if (open.length > 0) await sleep(RETRY_MS);
    }
    for (const record of networks) this.watermark.noteNetwork(record);
  }

  /** Asks for one more lease until it is granted. */
  async first(record: NetworkRecord): Promise<void> {
    const { host, ledger, bootId } = this.#options;
    const id = `${host}-first-${Math.random()}`;
    const who = { host, machineId: this.#machineId, bootId };
    const { network, revision } = record;
    const workload = `vm-${id}`;
    for (;;) {
      try {
        await ledger.acquire({ id, workload, kind: 'vm', network, revision, ...who });
        return;
      } catch (error) {
        if (!(error instanceof Error)) throw error;
        await sleep(100);
      }
    }
  }

  async #expire(id: string): Promise<void> {
    const lease = this.leases.get(id);
    if (lease === undefined || this.#expiring.has(id)) return;
    this.#expiring.add(id);
    const { ledger } = this.#options;
    for (;;) {
      try {
        await ledger.release({ ...lease, machineId: this.#machineId, cool: true });
        break;
      } catch (error) {
        if (!(error instanceof VoltError) || !error.retryable) throw error;
        await sleep(RETRY_MS);
      }
    }
    this.leases.delete(id);
    this.#expiring.delete(id);
    this.expired += 1;
  }

  /** As an agent, once for each epoch: reads what the ledger has of this host. */
  async #settle() {
    const { host, ledger } = this.#options;
    let cursor: string | undefined;
    do {
      ({ cursor } = await ledger.listLeases({ host, cursor }));
    } while (cursor !== undefined);
    return { kept: [], released: [] };
  }
}
