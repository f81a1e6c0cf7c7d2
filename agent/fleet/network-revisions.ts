import { VoltError } from '#protocol/errors.ts';
import type { Ledger, LetGo, NetworkRecord } from '#ipam-store/ledger.ts';
import type { Edits } from '../attachments/edits.ts';
import type { Log } from '../log.ts';
import type { LedgerWatermark } from './ledger-watermark.ts';

export interface NetworkRevisionsOptions {
  readonly host: string;
  readonly ledger: Ledger;
  readonly watermark: LedgerWatermark;
  /** Makes of what is there what the networks say. */
  readonly apply: Edits['apply'];
  /** The networks of whose bridges this host has one. */
  readonly bridged: () => readonly string[];
  readonly log: Log;
}

/** What an answer of the ledger says: of which revision the networks are, and in which epoch. */
export interface Told {
  readonly revision: number;
  readonly epoch: string;
}

/**
 * Keeps what this host knows of networks, and what it has made of them, as the ledger has it: reads what has changed,
 * and applies it to the attachments and bridges that are there.
 */
export class NetworkRevisions {
  readonly #options: NetworkRevisionsOptions;
  #applied: number | undefined;
  #applying: Promise<void> | undefined;

  constructor(options: NetworkRevisionsOptions) {
    this.#options = options;
  }

  /** The revision up to which all that has changed is applied; undefined before anything was read. */
  get applied(): number | undefined {
    return this.#applied;
  }

  /** The networks of which this host has something without attachments. */
  get bridged(): readonly string[] {
    return this.#options.bridged();
  }

  /**
   * Reads what has changed since this host has read last: changes alone, or all networks where the ledger has begun
   * another epoch. A recovery may bring back what was gone, under revisions of before. Resolves when it is read; it is
   * applied after that, and where that fails, again with the next heartbeat.
   */
  async follow(told: Told): Promise<void> {
    const { watermark } = this.#options;
    const isRead =
      told.epoch === watermark.networksEpoch && told.revision === watermark.networksRevision;
    if (isRead && (this.#applied === told.revision || this.#applying !== undefined)) return;
    const letGo =
      isRead || told.epoch === watermark.networksEpoch
        ? await this.#readChanges(told)
        : await this.#readAll(told);
    const revision = watermark.networksRevision;
    const applying = (this.#applying ?? Promise.resolve()).then(() => this.#apply(revision, letGo));
    this.#applying = applying;
    void applying.finally(() => {
      if (this.#applying === applying) this.#applying = undefined;
    });
  }

  /** The revision of each network as the ledger has it now, by name; changes nothing. */
  async current(): Promise<ReadonlyMap<string, number>> {
    const { ledger, watermark } = this.#options;
    const revisions = new Map(watermark.networks.map(revisionOf));
    try {
      const { changed } = await ledger.networkChanges(watermark.networksRevision);
      for (const [name, revision] of changed.map(revisionOf)) revisions.set(name, revision);
    } catch (error) {
      // Not armed: nothing changes.
      if (!(error instanceof VoltError && error.code === 'RECOVERING')) throw error;
    }
    return revisions;
  }

  async #readChanges(told: Told): Promise<readonly LetGo[]> {
    const { ledger, watermark, host } = this.#options;
    const networks = new Map(watermark.networks.map((one) => [one.network.network, one]));
    const before = watermark.networksRevision;
    for (let since = before; ;) {
      const page = await ledger.networkChanges(since, host);
      if (page.whole) return this.#readAll(told);
      for (const one of page.changed) networks.set(one.network.network, one);
      for (const name of page.gone) networks.delete(name);
      since = page.revision;
      if (page.more) continue;
      const read = { revision: since, epoch: told.epoch, networks: [...networks.values()] };
      if (since !== before) await watermark.noteNetworks(read);
      return page.letGo;
    }
  }

  async #readAll({ revision, epoch }: Told): Promise<readonly LetGo[]> {
    const { ledger, watermark, host } = this.#options;
    const networks: NetworkRecord[] = [];
    let cursor: string | undefined;
    do {
      const page = await ledger.listNetworks({ cursor });
      networks.push(...page.networks);
      ({ cursor } = page);
    } while (cursor !== undefined);
    await watermark.noteNetworks({ revision, epoch, networks });
    return (await ledger.networkChanges(revision, host)).letGo;
  }

  /** Rejects never: what could not be applied is tried again, and `check` tells of it. */
  async #apply(revision: number, letGo: readonly LetGo[]): Promise<void> {
    const { watermark, apply, log } = this.#options;
    try {
      await apply(watermark.networks, letGo);
      this.#applied = revision;
    } catch (error) {
      log.error({ revision, error: String(error) }, 'a change of networks is not applied yet');
    }
  }
}

const revisionOf = ({ network, revision }: NetworkRecord): [string, number] => [
  network.network,
  revision,
];
