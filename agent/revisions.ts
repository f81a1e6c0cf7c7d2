import type { Ledger, NetworkRecord } from '#ipam-store/ledger.ts';
import type { Witness } from './witness.ts';

export interface RevisionsOptions {
  readonly ledger: Ledger;
  readonly witness: Witness;
}

/** What an answer of the ledger says: of which revision the networks are, and in which epoch. */
export interface Told {
  readonly revision: number;
  readonly epoch: string;
}

/** Keeps what this host knows of networks as the ledger has it. */
export class Revisions {
  readonly #options: RevisionsOptions;

  constructor(options: RevisionsOptions) {
    this.#options = options;
  }

  /**
   * Reads what has changed since this host has read last: changes alone, or all networks where the ledger has begun
   * another epoch. A recovery may bring back what was gone, under revisions of before.
   */
  async follow({ revision, epoch }: Told): Promise<void> {
    const { witness } = this.#options;
    if (epoch !== witness.networksEpoch) await this.#readAll({ revision, epoch });
    else if (revision !== witness.networksRevision) await this.#readChanges({ revision, epoch });
  }

  async #readChanges(told: Told): Promise<void> {
    const { ledger, witness } = this.#options;
    const networks = new Map(witness.networks.map((one) => [one.network.network, one]));
    let since = witness.networksRevision;
    for (let more = true; more;) {
      const page = await ledger.networkChanges(since);
      if (page.whole) {
        await this.#readAll(told);
        return;
      }
      for (const one of page.changed) networks.set(one.network.network, one);
      for (const name of page.gone) networks.delete(name);
      since = page.revision;
      ({ more } = page);
    }
    const changed = { revision: since, epoch: told.epoch, networks: [...networks.values()] };
    await witness.noteNetworks(changed);
  }

  async #readAll({ revision, epoch }: Told): Promise<void> {
    const { ledger, witness } = this.#options;
    const networks: NetworkRecord[] = [];
    let cursor: string | undefined;
    do {
      const page = await ledger.listNetworks({ cursor });
      networks.push(...page.networks);
      ({ cursor } = page);
    } while (cursor !== undefined);
    await witness.noteNetworks({ revision, epoch, networks });
  }
}
