import { VoltError } from '#protocol/errors.ts';

/**
 * `unknown`: the ledger has not said yet. `alone`: the ledger cannot be asked. `refused`: another machine has the
 * host id.
 */
export type StandingState = 'unknown' | 'alone' | 'own' | 'refused';

type Listener = (refusal: VoltError | undefined) => void;

/**
 * Whether this agent may act as its host: take requests and jobs, end leases, publish in its name. Only the ledger
 * can tell two machines under one host id apart. So an agent acts once the ledger has known it as the host, and stops
 * when the ledger knows another. While the ledger is away, an agent that was not refused before acts: without the
 * ledger nothing of another machine's can be ended, and the host's own workloads must be able to go.
 */
export class Standing {
  #state: StandingState;
  #refusal: VoltError | undefined;
  #yieldsTo: string | undefined;
  readonly #keep: (yieldsTo: string | undefined) => void;
  readonly #listeners: Listener[] = [];

  /**
   * `yieldsTo`: the agent that ran here before was refused, and nothing has said that this is over. `keep` stores
   * that for the next agent.
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

  /** Why this agent must not act as its host; undefined if it may. */
  get refusal(): VoltError | undefined {
    return this.#refusal;
  }

  /** The machine that the ledger knows as the host, if it is another; undefined while waiting may still decide that. */
  get yieldsTo(): string | undefined {
    return this.#yieldsTo;
  }

  /** Throws the reason why this agent may not act as its host. */
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

  /** The ledger cannot be asked; what it said before stands. */
  noteAway(): void {
    if (this.#state === 'unknown') this.#set('alone', undefined, undefined);
  }

  /**
   * The ledger knows the host as another machine, or as another boot of this one: then the refusal has a
   * `retryAfterMs`.
   */
  noteRefused(refusal: VoltError): void {
    // A library before 1.7 says the machine alone.
    const { machineId, yieldsTo = machineId } = refusal.details ?? {};
    const waits = refusal.retryAfterMs !== undefined || typeof yieldsTo !== 'string';
    this.#set('refused', refusal, waits ? this.#yieldsTo : yieldsTo);
  }

  #set(state: StandingState, refusal: VoltError | undefined, yieldsTo: string | undefined): void {
    const others = yieldsTo !== this.#yieldsTo;
    // Whoever shows why the agent is refused shows the reason of now.
    const isSame = this.#refusal?.message === refusal?.message;
    const changed = !isSame || others || (state === 'refused') !== (this.#state === 'refused');
    this.#state = state;
    this.#refusal = refusal;
    this.#yieldsTo = yieldsTo;
    if (others) this.#keep(yieldsTo);
    if (changed) for (const listener of this.#listeners) listener(refusal);
  }
}
