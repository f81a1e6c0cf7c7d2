import { VoltError } from '#protocol/errors.ts';

/** `unknown`: the ledger has not said yet. `alone`: it cannot be asked. `refused`: the host id is another machine's. */
export type StandingState = 'unknown' | 'alone' | 'own' | 'refused';

type Listener = (refusal: VoltError | undefined) => void;

/**
 * Whether this agent may act as its host: take what is meant for the host, end leases, publish in its name. Two machines
 * under one host id are told apart by the ledger alone, so an agent acts once the ledger has known it as the host, and
 * stops when it is known as another. While the ledger is away an agent acts that was not refused before: nothing that
 * is somebody else's can be ended without the ledger, and a workload of its own must be able to go.
 */
export class Standing {
  #state: StandingState;
  #refusal: VoltError | undefined;
  #yieldsTo: string | undefined;
  readonly #keep: (yieldsTo: string | undefined) => void;
  readonly #listeners: Listener[] = [];

  /**
   * `yieldsTo`: the agent that ran here before was refused, and nothing has told that this is over. `keep` is told what
   * the next one has to know of that.
   */
  constructor(yieldsTo?: string, keep: (yieldsTo: string | undefined) => void = () => {}) {
    this.#yieldsTo = yieldsTo;
    this.#keep = keep;
    this.#state = yieldsTo === undefined ? 'unknown' : 'refused';
    this.#refusal =
      yieldsTo === undefined
        ? new VoltError('STORE_UNAVAILABLE', 'the ledger has not said whose this host is')
        : new VoltError(
            'HOST_CONFLICT',
            'another machine had this host id when the ledger was asked last',
          );
  }

  get state(): StandingState {
    return this.#state;
  }

  /** Why this agent must not act as its host; undefined where it may. */
  get refusal(): VoltError | undefined {
    return this.#refusal;
  }

  /** Whom the ledger knows as the host, where it is another; undefined while that may still be found out by waiting. */
  get yieldsTo(): string | undefined {
    return this.#yieldsTo;
  }

  /** Throws what keeps this agent from acting as its host. */
  check(): void {
    if (this.#refusal !== undefined) throw this.#refusal;
  }

  /** Called with each change of `refusal`. */
  onChange(listener: Listener): void {
    this.#listeners.push(listener);
  }

  /** The ledger has taken a heartbeat. */
  noteOwn(): void {
    this.#set('own', undefined, undefined);
  }

  /** The ledger cannot be asked; what it has said before stands. */
  noteAway(): void {
    if (this.#state === 'unknown') this.#set('alone', undefined, undefined);
  }

  /** The ledger knows the host as another machine, or another boot of this one: a refusal with `retryAfterMs`. */
  noteRefused(refusal: VoltError): void {
    // A library before 1.7 says the machine alone.
    const { machineId, yieldsTo = machineId } = refusal.details ?? {};
    const waits = refusal.retryAfterMs !== undefined || typeof yieldsTo !== 'string';
    this.#set('refused', refusal, waits ? this.#yieldsTo : yieldsTo);
  }

  #set(state: StandingState, refusal: VoltError | undefined, yieldsTo: string | undefined): void {
    const others = yieldsTo !== this.#yieldsTo;
    const isSame = (this.#refusal === undefined) === (refusal === undefined);
    const changed = !isSame || others || (state === 'refused') !== (this.#state === 'refused');
    this.#state = state;
    this.#refusal = refusal;
    this.#yieldsTo = yieldsTo;
    if (others) this.#keep(yieldsTo);
    if (changed) for (const listener of this.#listeners) listener(refusal);
  }
}
