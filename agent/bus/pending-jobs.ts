/** Nothing came for so long although jobs were asked for: the server had none to deliver. */
export const QUIET_MS = 1_000;
/** A job that should have come again so long ago was deleted. */
const OVERDUE_MS = 120_000;

/**
 * How many jobs of a host wait in its stream. The server tells with each delivery how many it has never delivered; those
 * that it was asked to deliver again later it does not count. Of jobs that are deleted it says nothing.
 */
export class PendingJobs {
  #undelivered = 0;
  /** When they come again, by their sequence numbers. */
  readonly #later = new Map<number, number>();

  noteDelivered({ sequence, undelivered }: { sequence: number; undelivered: number }): void {
    this.#undelivered = undelivered;
    this.#later.delete(sequence);
  }

  noteLater(sequence: number, delayMs: number): void {
    this.#later.set(sequence, performance.now() + delayMs);
  }

  /** Whatever the server is asked from now on, it tells anew. */
  clear(): void {
    this.#undelivered = 0;
    this.#later.clear();
  }

  /** `quietMs`: for how long jobs have been asked for without one having come. */
  count(quietMs: number): number {
    const isQuiet = quietMs >= QUIET_MS;
    if (isQuiet) this.#undelivered = 0;
    const overdue = performance.now() - (isQuiet ? QUIET_MS : OVERDUE_MS);
    for (const [sequence, due] of this.#later) if (due < overdue) this.#later.delete(sequence);
    return this.#undelivered + this.#later.size;
  }
}
