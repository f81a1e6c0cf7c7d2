import { type Ledger, listAfter, type Pulse, type Self, someOf } from '#ipam-store/ledger.ts';
import type { Log } from './log.ts';
import type { Witness } from './witness.ts';

export interface HostListOptions {
  readonly self: Self;
  readonly suspectAfterSeconds: number;
  readonly ledger: Ledger;
  readonly witness: Witness;
  readonly log: Log;
}

/** Keeps the list of hosts that this host has seen as the ledger has it, and tells it to one that has lost it. */
export class HostList {
  readonly #options: HostListOptions;
  constructor(options: HostListOptions) {
    this.#options = options;
  }

  /** The list as this answer tells it, or as it was read: the ledger says whose turn that is. */
  async note({ seen, list, some, behind }: Pulse): Promise<void> {
    const { witness, ledger, log } = this.#options;
    const news = list && listAfter(witness.seen, list);
    await witness.note(seen, news ?? (some.length > 0 ? someOf(some) : undefined));
    if (!behind && (list === undefined || news !== undefined)) return;
    try {
      await witness.note(witness.seen, await ledger.readHosts(witness.seen));
    } catch (error) {
      log.warn({ error: String(error) }, 'the list of hosts is not read yet');
    }
  }

  async tell(): Promise<void> {
    const { self, suspectAfterSeconds, ledger, witness, log } = this.#options;
    await ledger.tellHosts({ ...self, suspectAfterSeconds }, witness.seen);
    log.info({ hosts: witness.seen.hosts.length }, 'the list of hosts was told');
  }
}
