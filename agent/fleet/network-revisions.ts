import { VoltError } from '#protocol/errors.ts';
import type { Ledger, LetGo, NetworkRecord } from '#ipam-store/ledger.ts';
import type { Edits } from '../attachments/edits.ts';
import type { Log } from '../log.ts';
import type { LedgerWatermark } from './ledger-watermark.ts';

export interface NetworkRevisionsOptions {
  readonly host: string;
  readonly ledger: Ledger;
  readonly watermark: LedgerWatermark;
  /** Changes the attachments and bridges of this host as the networks say now. */
  readonly apply: Edits['apply'];
  /** The networks whose bridge is on this host. */
  readonly bridged: () => readonly string[];
  readonly log: Log;
}

/** From an answer of the ledger: the revision of its last change of a network, and its epoch. */
export interface Told {
  readonly revision: number;
  readonly epoch: string;
}

/**
 * Keeps the networks that this host knows up to date with the ledger: reads what has changed, and applies it to the
 * attachments and bridges of this host.
 */
export class NetworkRevisions {
  readonly #options: NetworkRevisionsOptions;
  #applied: number | undefined;
  #applying: Promise<void> | undefined;

  constructor(options: NetworkRevisionsOptions) {
    this.#options = options;
  }

  /** The revision up to which all changes are applied; undefined before anything was read. */
  get applied(): number | undefined {
    return this.#applied;
  }

  /** The networks that have something on this host, and no attachments here. */
  get bridged(): readonly string[] {
    return this.#options.bridged();
  }

  /**
   * Reads what has changed since the last time: only the changes, or all networks if the ledger has begun another
   * epoch, since a recovery may bring back networks under older revisions. Resolves when it is read. It is applied
   * after that; if that fails, it is applied again with the next heartbeat.
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

  /** Never rejects: what could not be applied is tried again, and `check` reports it. */
  async #apply(revision: number, letGo: readonly LetGo[]): Promise<void> {
    const { watermark, apply, log } = this.#options;
    try {
      await apply(watermark.networks, letGo);
      this.#applied = revision;
    } catch (error) {
      log.error(
        { revision, error: String(error) },
        'changed networks could not be applied on this host: trying again',
      );
    }
  }
}

const revisionOf = ({ network, revision }: NetworkRecord): [string, number] => [
  network.network,
  revision,
];
