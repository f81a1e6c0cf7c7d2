// What metrics are made of, beside the state of the agent.

/** A request or a job was answered, refused ones included. */
export interface Answered {
  /** `attach`, `network.put`, `job.attach`. */
  readonly operation: string;
  /** `OK`, or the code of the error. */
  readonly code: string;
  /** From its arrival to its answer. */
  readonly ms: number;
}

export const CHANGES = ['attach', 'detach', 'update'] as const;
export type Change = (typeof CHANGES)[number];

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
