import type { Ledger } from '#ipam-store/ledger.ts';
import type { Attachments } from './attachments.ts';
import type { Log } from './log.ts';

export interface SessionOptions {
  readonly host: string;
  readonly machineId: string;
  readonly bootId: string;
  readonly heartbeatSeconds: number;
  readonly suspectAfterSeconds: number;
  readonly ledger: Ledger;
  readonly attachments: Attachments;
  readonly log: Log;
}

/**
 * This host's session in the ledger: one heartbeat a period says that the host lives, whatever it holds,
 * and brings back which of its leases have expired, by the ledger's clock.
 */
export class Session {
  readonly #options: SessionOptions;
  #timer: NodeJS.Timeout | undefined;
  #beating = false;

  constructor(options: SessionOptions) {
    this.#options = options;
  }

  start(): void {
    this.#timer = setInterval(() => void this.beat(), this.#options.heartbeatSeconds * 1_000);
    void this.beat();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** Also called when the ledger comes back, so that a period is not waited for. */
  async beat(): Promise<void> {
    const { host, machineId, bootId, suspectAfterSeconds, ledger, attachments, log } =
      this.#options;
    if (this.#beating || ledger.status.state !== 'ready') return;
    this.#beating = true;
    try {
      const { nowMs, due } = await ledger.heartbeat({
        host,
        machineId,
        bootId,
        suspectAfterSeconds,
      });
      for (const { id } of due) await attachments.expire({ id, nowMs });
    } catch (error) {
      log.warn({ error: String(error) }, 'heartbeat refused');
    } finally {
      this.#beating = false;
    }
  }
}
