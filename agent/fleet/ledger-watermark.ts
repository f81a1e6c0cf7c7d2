import { mkdirSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { parseNetwork } from '#protocol/network.ts';
import {
  type HostList,
  type NetworkRecord,
  NOTHING_SEEN,
  type Pulse,
  type Seen,
} from '#ipam-store/ledger.ts';
import type { Log } from '../log.ts';
import { writeDurably } from '../storage/durable-file.ts';

const VERSION = 1;
const LEDGER_FILE = 'ledger.json';
const NETWORKS_FILE = 'networks.json';
/**
 * Counters that only grow are stored no more often than this: records hold the generations of everything that lives.
 */
const COUNTERS_MS = 60_000;
/** A generation is epoch · 2³² + n. */
const EPOCH_UNIT = 2 ** 32;

const counter = z.int().min(0);
const ledgerSchema = z.object({
  version: z.literal(VERSION),
  generation: counter,
  revision: counter,
  roster: counter,
  hosts: z.array(z.string()),
});
const networksSchema = z.object({
  version: z.literal(VERSION),
  revision: counter,
  // An earlier release stored none; then all networks are read again.
  epoch: z.string().optional(),
  networks: z.array(z.object({ revision: counter, network: z.unknown() })),
});

/**
 * What this host has seen of the ledger, in the state folder: the newest counters and list of hosts that an answer
 * held, and every network. With it the hosts notice that a Redis has come back empty or older, and fill it again.
 */
export class LedgerWatermark {
  readonly #folder: string;
  readonly #log: Log;
  #seen: Seen = NOTHING_SEEN;
  /** What of it is on disk. */
  #stored: Seen = NOTHING_SEEN;
  #storedAtMs = -Infinity;
  #networks: readonly NetworkRecord[] = [];
  #networksRevision = 0;
  #networksEpoch: string | undefined;

  constructor(options: { stateDir: string; log: Log }) {
    this.#folder = options.stateDir;
    this.#log = options.log;
  }

  /** Reads the state folder. A file that cannot be read is set aside and reported, and counts as never seen. */
  load(): void {
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    this.#read(LEDGER_FILE, (value) => {
      const { version: _, ...seen } = ledgerSchema.parse(value);
      this.#seen = seen;
      this.#stored = seen;
    });
    this.#read(NETWORKS_FILE, (value) => {
      const { revision, epoch, networks } = networksSchema.parse(value);
      this.#networks = networks.map((one) => ({
        revision: one.revision,
        network: parseNetwork(one.network),
      }));
      this.#networksRevision = revision;
      this.#networksEpoch = epoch;
      this.#noteRevision(revision);
    });
  }

  get seen(): Seen {
    return this.#seen;
  }

  /** Every network of the fleet, as of `networksRevision`. */
  get networks(): readonly NetworkRecord[] {
    return this.#networks;
  }

  get networksRevision(): number {
    return this.#networksRevision;
  }

  /** The epoch of the ledger in which the networks were read. */
  get networksEpoch(): string | undefined {
    return this.#networksEpoch;
  }

  /**
   * Notes a generation that was granted to this host. It reaches the disk with its record, and later with the
   * counters.
   */
  noteGeneration(generation: number): void {
    if (generation > this.#seen.generation) this.#seen = { ...this.#seen, generation };
  }

  /**
   * Notes what an answer held. Resolves when a new list of hosts, or a new epoch, is on disk: only then does this
   * host say that it has seen the list, since others rely on that. If the disk refuses, that is logged, and the list
   * counts as not seen.
   */
  async note({ generation, revision }: Pulse['seen'], list?: HostList): Promise<void> {
    this.noteGeneration(generation);
    this.#noteRevision(revision);
    const isNewEpoch = epochOf(this.#seen) !== epochOf(this.#stored);
    const isOld = performance.now() - this.#storedAtMs > COUNTERS_MS;
    if (list !== undefined || isNewEpoch || (isOld && this.#hasNews())) await this.#store(list);
  }

  /** Before the agent ends: stores what was not worth a write of its own. */
  async close(): Promise<void> {
    if (this.#hasNews()) await this.#store();
  }

  #hasNews(): boolean {
    const { generation, revision } = this.#stored;
    return this.#seen.generation !== generation || this.#seen.revision !== revision;
  }

  async #store(list?: HostList): Promise<void> {
    const seen = { ...this.#seen, ...list };
    if (!(await this.#write(LEDGER_FILE, seen))) return;
    this.#stored = seen;
    this.#storedAtMs = performance.now();
    this.#seen = { ...this.#seen, ...list };
  }

  /** All networks, as of a revision. */
  async noteNetworks(read: {
    readonly revision: number;
    readonly epoch: string;
    readonly networks: readonly NetworkRecord[];
  }): Promise<void> {
    // A network that was put or used while these were read is newer than they are.
    const named = new Set(read.networks.map(({ network }) => network.network));
    const newer = this.#networks.filter(
      ({ network, revision }) => revision > read.revision && !named.has(network.network),
    );
    this.#networks = [...read.networks, ...newer];
    this.#networksRevision = read.revision;
    this.#networksEpoch = read.epoch;
    await this.#write(NETWORKS_FILE, { ...read, networks: this.#networks });
  }

  /** Notes one network that this host has put, or is about to use. */
  noteNetwork({ network, revision }: NetworkRecord): void {
    const name = network.network;
    const known = this.#networks.find((one) => one.network.network === name);
    if ((known?.revision ?? 0) >= revision) return;
    const others = this.#networks.filter((one) => one !== known);
    // It reaches the disk when it is read after the next heartbeat.
    this.#networks = [...others, { network, revision }];
    this.#noteRevision(revision);
  }

  #noteRevision(revision: number): void {
    this.#seen = { ...this.#seen, revision: Math.max(this.#seen.revision, revision) };
  }

  #read(name: string, take: (value: unknown) => void): void {
    const path = join(this.#folder, name);
    try {
      take(JSON.parse(readFileSync(path, 'utf8')));
    } catch (error) {
      if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return;
      renameSync(path, `${path}.corrupt`);
      this.#log.error(
        { file: path, error: String(error) },
        'watermark file set aside: it cannot be read',
      );
    }
  }

  /** False if the disk refuses. */
  async #write(name: string, value: object): Promise<boolean> {
    const path = join(this.#folder, name);
    try {
      await writeDurably(path, { version: VERSION, ...value });
      return true;
    } catch (error) {
      this.#log.error({ file: path, error: String(error) }, 'watermark file not written to disk');
      return false;
    }
  }
}

const epochOf = ({ generation }: Seen): number => Math.floor(generation / EPOCH_UNIT);
