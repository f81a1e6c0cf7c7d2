import { type Ledger, listAfter, type Pulse, type Self } from '#ipam-store/ledger.ts';
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
  /** The list is about to be read. */
  #reading: NodeJS.Timeout | undefined;

  constructor(options: HostListOptions) {
    this.#options = options;
  }

  stop(): void {
    clearTimeout(this.#reading);
  }

  /** The list as this answer tells it, or when it has been read. */
  async note({ seen, list, behind, vouch }: Pulse): Promise<void> {
    const { witness, log } = this.#options;
    const news = list && listAfter(witness.seen, list);
    await witness.note(seen, news);
    if (behind === undefined && (list === undefined || news !== undefined)) return;
    // A newcomer waits for it; what nobody waits for is spread, since the whole fleet has it to read.
    if (vouch) {
      await this.#read();
      return;
    }
    this.#reading ??= setTimeout(
      () => {
        this.#read().catch((error: unknown) => {
          log.warn({ error: String(error) }, 'the list of hosts is not read yet');
        });
      },
      Math.random() * (behind?.withinMs ?? 0),
    );
  }

  async tell(): Promise<void> {
    const { self, suspectAfterSeconds, ledger, witness, log } = this.#options;
    await ledger.tellHosts({ ...self, suspectAfterSeconds }, witness.seen);
    log.info({ hosts: witness.seen.hosts.length }, 'the list of hosts was told');
  }

  async #read(): Promise<void> {
    const { witness, ledger } = this.#options;
    clearTimeout(this.#reading);
    const before = witness.seen;
    try {
      const list = await ledger.readHosts(before);
      // A heartbeat may have been quicker.
      if (witness.seen.hosts === before.hosts) await witness.note(witness.seen, list);
    } finally {
      this.#reading = undefined;
    }
  }
}
