import { type Ledger, listAfter, type Pulse, type Self, someOf } from '#ipam-store/ledger.ts';
import type { Log } from '../log.ts';
import type { LedgerWatermark } from './ledger-watermark.ts';

export interface HostListOptions {
  readonly self: Self;
  readonly suspectAfterSeconds: number;
  readonly ledger: Ledger;
  readonly watermark: LedgerWatermark;
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
    const { watermark, ledger, log } = this.#options;
    const news = list && listAfter(watermark.seen, list);
    await watermark.note(seen, news ?? (some.length > 0 ? someOf(some) : undefined));
    if (!behind && (list === undefined || news !== undefined)) return;
    try {
      await watermark.note(watermark.seen, await ledger.readHosts(watermark.seen));
    } catch (error) {
      log.warn({ error: String(error) }, 'the list of hosts is not read yet');
    }
  }

  async tell(): Promise<void> {
    const { self, suspectAfterSeconds, ledger, watermark, log } = this.#options;
    await ledger.tellHosts({ ...self, suspectAfterSeconds }, watermark.seen);
    log.info({ hosts: watermark.seen.hosts.length }, 'the list of hosts was told');
  }
}
