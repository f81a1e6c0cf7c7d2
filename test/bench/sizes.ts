/** How much is measured. */
export interface Sizes {
  /** Turns of each rival. */
  readonly rounds: number;
  /** Attaches in each turn of those that attach one after the other. */
  readonly block: number;
  /** Turns where each is hundreds of attaches. */
  readonly turns: number;
  /** Attaches of such a turn. */
  readonly attaches: number;
  /** Detaches at once. */
  readonly detaches: number;
  /** Detaches that another attach meets. */
  readonly drained: number;
  /** Very many attachments, and half as many. */
  readonly attachments: number;
  /** Attaches with their detaches before memory is read. */
  readonly cycles: number;
  readonly badMessages: number;
  readonly restSeconds: number;
  /** Agents started for their first attach, of each kind. */
  readonly coldStarts: number;
  /** Numbers on the command line: sizes of fleets. */
  readonly numbers: readonly number[];
}

export const FULL: Sizes = {
  rounds: 100,
  block: 8,
  turns: 8,
  attaches: 256,
  detaches: 640,
  drained: 960,
  attachments: 10_000,
  cycles: 6_000,
  badMessages: 30_000,
  restSeconds: 60,
  coldStarts: 10,
  numbers: [],
};

/** To see whether all of it works: the figures say little. */
export const QUICK: Sizes = {
  rounds: 10,
  block: 4,
  turns: 2,
  attaches: 64,
  detaches: 128,
  drained: 192,
  attachments: 600,
  cycles: 600,
  badMessages: 1_200,
  restSeconds: 5,
  coldStarts: 2,
  numbers: [],
};
