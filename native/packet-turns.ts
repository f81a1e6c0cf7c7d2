// Whose packet is read next, where anybody may send as many as he likes.

/** So long packets are read in a turn of the event loop, and the one longer in which that time ends. */
const TURN_MS = 2;

export interface Sender {
  /** Whose turn it is. */
  readonly uid: number;
  /** Reads one packet, if there still is one, and deals with it. */
  take(): void;
}

/**
 * Packets of all connections of a socket: one account after the other, of each one connection after the other, a packet
 * at a time, and not for longer in a turn of the event loop than everything else can wait.
 */
export class PacketTurns {
  /** First the account whose turn is longest ago, and of it that connection. */
  readonly #waiting = new Map<number, Set<Sender>>();
  #scheduled = false;

  /** Notes that a connection has something to read. Harmless when that is known. */
  add(sender: Sender): void {
    const { uid } = sender;
    const own = this.#waiting.get(uid);
    if (own === undefined) this.#waiting.set(uid, new Set([sender]));
    else own.add(sender);
    this.#schedule();
  }

  #schedule(): void {
    if (this.#scheduled || this.#waiting.size === 0) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      try {
        this.#takeTurn();
      } finally {
        this.#schedule();
      }
    });
  }

  #takeTurn(): void {
    const end = performance.now() + TURN_MS;
    do {
      const next = this.#next();
      if (next === undefined) return;
      next.take();
    } while (performance.now() < end);
  }

  #next(): Sender | undefined {
    const [first] = this.#waiting;
    if (first === undefined) return undefined;
    const [uid, own] = first;
    const [sender] = own;
    if (sender !== undefined) own.delete(sender);
    this.#waiting.delete(uid);
    if (own.size > 0) this.#waiting.set(uid, own);
    return sender;
  }
}
