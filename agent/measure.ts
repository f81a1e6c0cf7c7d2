import {
  HOST_OPERATIONS,
  JOB_OPERATIONS,
  LEDGER_OPERATIONS,
  NETWORK_OPERATIONS,
} from '#protocol/subjects.ts';

// What metrics are made of, beside the state of the agent.

/** What is asked of an agent: `attach`, `network.put`, `job.attach`. */
export const OPERATIONS: readonly string[] = [
  ...HOST_OPERATIONS,
  ...NETWORK_OPERATIONS.map((name) => `network.${name}`),
  ...LEDGER_OPERATIONS.map((name) => `ledger.${name}`),
  ...JOB_OPERATIONS.map((name) => `job.${name}`),
];

/** A request or a job was answered, refused ones included. */
export interface Answered {
  /** One of OPERATIONS, or `job.unknown`. */
  readonly operation: string;
  /** `OK`, or the code of the error. */
  readonly code: string;
  /** From its arrival to its answer. */
  readonly ms: number;
}

export type Change = 'attach' | 'detach' | 'update';

/** A part of a change of an attachment has ended. */
export interface Phase {
  readonly operation: Change;
  /**
   * `ipam`: the lease; `kernel`: the device; `answer`: all until the answer, from the request's turn on its id; `total`: until
   * nothing of a detached attachment is left.
   */
  readonly phase: 'ipam' | 'kernel' | 'answer' | 'total';
  /** The type of the network; `unknown` if the change failed before that was read. */
  readonly type: string;
  readonly result: 'ok' | 'replayed' | 'error';
  readonly ms: number;
}

/** A repair was done, or failed. */
export interface Repaired {
  /** `mend`, `remake`, `network`: as in `repaired` events, and the plan's others. */
  readonly action: string;
  readonly result: 'done' | 'failed';
}

/** As a diagnostics channel, for one type of message and one listener. While nobody listens a message costs one property read. */
export class Measure<Message> {
  #take: ((message: Message) => void) | undefined;

  /** There is one who makes metrics of it. */
  hear(take: (message: Message) => void): void {
    this.#take = take;
  }

  note(message: Message): void {
    this.#take?.(message);
  }
}

export const answers = new Measure<Answered>();
export const phases = new Measure<Phase>();
export const repairs = new Measure<Repaired>();
