import { setTimeout as sleep } from 'node:timers/promises';
import type { Ledger, NetworkUsage } from '#ipam-store/ledger.ts';
import type { Log } from '../log.ts';
import { jittered } from '../schedule/rhythm.ts';

export interface PoolsOptions {
  readonly ledger: Pick<Ledger, 'getNetwork' | 'status'>;
  /** Networks that this host has attachments of. */
  readonly networks: () => readonly string[];
  /** Each network is read once in this time. */
  readonly periodSeconds: number;
  readonly log: Pick<Log, 'debug'>;
}

/** A ledger that takes long to answer has much to do, or the network has very many reservations: then it is asked less. */
const REST = { timesBusy: 1_000, periods: 10 };
const WITHOUT_NETWORKS_MS = 5_000;
/** What was not read again for so many rounds is not told any more. */
const ROUNDS_KEPT = 3;

/**
 * How full the networks of this host are, read from the ledger one after the other. All hosts of a network read the same:
 * the ledger has one call for each host, network and period, and fewer while it is slow.
 */
export class Pools {
  readonly #options: PoolsOptions;
  readonly #read = new Map<string, { readonly usage: NetworkUsage; readonly untilMs: number }>();
  readonly #stopping = new AbortController();

  constructor(options: PoolsOptions) {
    this.#options = options;
  }

  start(): void {
    void this.#run();
  }

  stop(): void {
    this.#stopping.abort();
  }

  /** By network. A network that this host has no attachment of any more, or that could not be read lately, is not among them. */
  get usage(): ReadonlyMap<string, NetworkUsage> {
    const now = performance.now();
    const known = new Set(this.#options.networks());
    return new Map(
      [...this.#read]
        .filter(([name, { untilMs }]) => known.has(name) && now <= untilMs)
        .map(([name, { usage }]) => [name, usage] as const),
    );
  }

  async #run(): Promise<void> {
    const { networks, periodSeconds } = this.#options;
    const { signal } = this.#stopping;
    while (!signal.aborted) {
      const names = networks();
      for (const name of this.#read.keys()) if (!names.includes(name)) this.#read.delete(name);
      const periodMs = periodSeconds * 1_000;
      for (const name of names) {
        const started = performance.now();
        const usage = await this.#ask(name);
        const now = performance.now();
        const longest = Math.min(REST.timesBusy * (now - started), REST.periods * periodMs);
        const waitMs = Math.max(periodMs / names.length, longest);
        if (usage === null) this.#read.delete(name);
        const untilMs = now + ROUNDS_KEPT * waitMs * names.length;
        if (usage) this.#read.set(name, { usage, untilMs });
        if (!(await this.#pause(jittered(waitMs)))) return;
      }
      if (names.length > 0) continue;
      if (!(await this.#pause(Math.min(periodMs, WITHOUT_NETWORKS_MS)))) return;
    }
  }

  /** False if nothing is to be read any more. */
  async #pause(ms: number): Promise<boolean> {
    const { signal } = this.#stopping;
    return sleep(ms, true, { ref: false, signal }).catch(() => false);
  }

  /** Null if there is no such network, undefined if it could not be read. */
  async #ask(name: string): Promise<NetworkUsage | null | undefined> {
    const { ledger, log } = this.#options;
    if (ledger.status.state !== 'ready') return undefined;
    try {
      return (await ledger.getNetwork(name))?.usage ?? null;
    } catch (error) {
      log.debug({ network: name, error: String(error) }, 'how full a network is could not be read');
      return undefined;
    }
  }
}
