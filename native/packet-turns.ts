// Whose packet is read next, on a socket to which anybody may send as many as he likes.

/**
 * How long packets are read in one turn of the event loop; the packet during which that time ends is read to its end.
 */
const TURN_MS = 2;

export interface Sender {
  /** Whose turn it is. */
  readonly uid: number;
  /** Reads one packet, if there still is one, and handles it. */
  take(): void;
}

/**
 * Packets of all connections of a socket, taken in turns: one account after the other, within an account one
 * connection after the other, one packet at a time. It stops after a while in each turn of the event loop, so that
 * everything else goes on.
 */
export class PacketTurns {
  /** The account whose turn is longest ago comes first, and of that account the connection. */
  readonly #waiting = new Map<number, Set<Sender>>();
  #scheduled = false;

  /** Notes that a connection has something to read; again is harmless. */
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
