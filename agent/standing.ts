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
  #state: StandingState = 'unknown';
  #refusal: VoltError | undefined;
  readonly #listeners: Listener[] = [];

  constructor() {
    this.#refusal = new VoltError(
      'STORE_UNAVAILABLE',
      'the ledger has not said whose this host is',
    );
  }

  get state(): StandingState {
    return this.#state;
  }

  /** Why this agent must not act as its host; undefined where it may. */
  get refusal(): VoltError | undefined {
    return this.#refusal;
  }

  /** The machine that the ledger knows as the host, where it is another. */
  get owner(): string | undefined {
    const machineId = this.#state === 'refused' ? this.#refusal?.details?.['machineId'] : undefined;
    return typeof machineId === 'string' ? machineId : undefined;
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
    this.#set('own', undefined);
  }

  /** The ledger cannot be asked; what it has said before stands. */
  noteAway(): void {
    if (this.#state === 'unknown') this.#set('alone', undefined);
  }

  /** The ledger knows the host as another machine. */
  noteRefused(refusal: VoltError): void {
    this.#set('refused', refusal);
  }

  #set(state: StandingState, refusal: VoltError | undefined): void {
    const isSame = (this.#refusal === undefined) === (refusal === undefined);
    const changed = !isSame || (state === 'refused') !== (this.#state === 'refused');
    this.#state = state;
    this.#refusal = refusal;
    if (changed) for (const listener of this.#listeners) listener(refusal);
  }
}
