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

/** Keeps the list of hosts as the ledger has it, and tells it to a ledger that has lost it. */
export class HostList {
  readonly #options: HostListOptions;
  constructor(options: HostListOptions) {
    this.#options = options;
  }

  /** Applies the list of a heartbeat's answer, or reads it: the ledger says whose turn to read it is. */
  async note({ seen, list, some, behind }: Pulse): Promise<void> {
    const { watermark, ledger, log } = this.#options;
    const news = list && listAfter(watermark.seen, list);
    await watermark.note(seen, news ?? (some.length > 0 ? someOf(some) : undefined));
    if (!behind && (list === undefined || news !== undefined)) return;
    try {
      await watermark.note(watermark.seen, await ledger.readHosts(watermark.seen));
    } catch (error) {
      log.warn(
        { error: String(error) },
        'the list of hosts could not be read from the ledger: trying again',
      );
    }
  }

  async tell(): Promise<void> {
    const { self, suspectAfterSeconds, ledger, watermark, log } = this.#options;
    await ledger.tellHosts({ ...self, suspectAfterSeconds }, watermark.seen);
    log.info(
      { hosts: watermark.seen.hosts.length },
      'the ledger was told the list of hosts that it had lost',
    );
  }
}
