import { setImmediate as nextTurn } from 'node:timers/promises';
import { VoltError } from '#protocol/errors.ts';

/** So many requests begin in one turn of the event loop. The synchronous part of one takes a millisecond or two. */
const PER_TURN = 16;
/** So many of these may be reads, even while more changes wait than begin. */
const READS_PER_TURN = 4;

interface Bounds {
  /** Requests that wait or are under way. Above this, a caller with more than an equal share of them is refused. */
  readonly shared: number;
  /** Above this, everybody is refused: a caller who uses very many names has no share by which to refuse him. */
  readonly most: number;
  /** So many are under way at a time. */
  readonly atOnce: number;
}

const CHEAP: Bounds = { shared: 1_024, most: 2_048, atOnce: Infinity };
const EXPENSIVE: Bounds = { shared: 128, most: 256, atOnce: 1 };

/**
 * Requests are told apart by their price: nobody can choose a price, while everybody can choose the name by which he
 * calls. Each lane has limits of its own, so that very many requests of one kind leave room for the others.
 */
const LANES = {
  /** Attach, detach, update, jobs, and every other change: before all other lanes. */
  change: CHEAP,
  /** Requests that are answered from memory, or by one command of Redis. */
  read: CHEAP,
  list: EXPENSIVE,
  checkOne: { ...EXPENSIVE, atOnce: 4 },
  // Those who ask for these share one answer (`SharedRun`).
  check: { ...EXPENSIVE, atOnce: Infinity },
  fleetCheck: { ...EXPENSIVE, atOnce: Infinity },
  // The thread of dry runs takes one at a time; meanwhile the next ones may be checked.
  'dry-run': { ...EXPENSIVE, atOnce: 4 },
  leases: EXPENSIVE,
  hosts: EXPENSIVE,
  networks: EXPENSIVE,
} as const satisfies Record<string, Bounds>;

export type LaneName = keyof typeof LANES;

export const isExpensive = (lane: LaneName): boolean => lane !== 'change' && lane !== 'read';

/** Thrown by a request that has turned out dearer than it looked: it waits again, in that lane. */
export type Move = (lane: LaneName) => Promise<void>;

/**
 * Lets requests in: changes before cheap reads, cheap reads before expensive ones; of the last one begins in each
 * turn of the event loop. Within a lane callers take turns, and the requests of one caller keep their order.
 */
export class Admission {
  readonly #lanes: ReadonlyMap<string, Lane> = new Map(
    Object.entries(LANES).map(([name, bounds]) => [name, new Lane(bounds)]),
  );
  readonly #changes = this.#lane('change');
  readonly #reads = this.#lane('read');
  /** First the one whose turn is longest ago. */
  readonly #expensive = [...this.#lanes.values()].filter(
    (lane) => lane !== this.#changes && lane !== this.#reads,
  );
  /** In this turn of the event loop. */
  #begun = 0;
  #scheduled = false;

  /** Whether changes wait or are under way. */
  get hasChanges(): boolean {
    return !this.#changes.isEmpty;
  }

  /** `passIn` of what changes something. */
  pass<T>(caller: string, deadline: number, work: () => Promise<T>): Promise<T> {
    return this.passIn('change', { caller, deadline }, work);
  }

  /**
   * Does the work in the caller's turn, which comes before `deadline` (`performance.now()` time) or not at all
   * (DEADLINE_EXCEEDED). OVERLOADED if too many requests are in its lane.
   */
  async passIn<T>(
    lane: LaneName,
    { caller, deadline }: { readonly caller: string; readonly deadline: number },
    work: (move: Move) => Promise<T>,
  ): Promise<T> {
    let place: Place | undefined;
    const wait = async (name: LaneName): Promise<void> => {
      place?.lane.leave(place);
      place = undefined;
      place = this.#lane(name).enter(caller);
      await this.#turn(place, !isExpensive(name));
      if (performance.now() > deadline) {
        throw new VoltError('DEADLINE_EXCEEDED', 'too many requests came before this one');
      }
    };
    try {
      await wait(lane);
      return await work(wait);
    } finally {
      place?.lane.leave(place);
      this.#schedule();
    }
  }

  #lane(name: LaneName): Lane {
    const lane = this.#lanes.get(name);
    if (lane === undefined) throw new Error(`there is no lane ${name}`);
    return lane;
  }

  /** What is cheap begins at once while few come. */
  async #turn(place: Place, cheap: boolean): Promise<void> {
    this.#schedule();
    if (cheap && this.#begun < PER_TURN && !this.#changes.ready && !this.#reads.ready) {
      this.#begun += 1;
      place.lane.begin(place);
      return;
    }
    await place.lane.wait(place);
  }

  /** Begins the requests that may begin, in the next turn of the event loop. */
  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    void nextTurn().then(() => {
      this.#scheduled = false;
      try {
        this.#beginTurn();
      } finally {
        if ([...this.#lanes.values()].some(({ ready }) => ready)) this.#schedule();
      }
    });
  }

  #beginTurn(): void {
    this.#begun = 0;
    const reads = Math.min(READS_PER_TURN, this.#reads.waiting);
    this.#beginFrom(this.#changes, PER_TURN - reads);
    this.#beginFrom(this.#reads, PER_TURN);
    this.#beginFrom(this.#changes, PER_TURN);
    this.#beginExpensive();
  }

  #beginFrom(lane: Lane, most: number): void {
    while (this.#begun < most && lane.ready) {
      lane.beginNext();
      this.#begun += 1;
    }
  }

  #beginExpensive(): void {
    const at = this.#expensive.findIndex(({ ready }) => ready);
    const [lane] = at < 0 ? [] : this.#expensive.splice(at, 1);
    if (lane === undefined) return;
    lane.beginNext();
    this.#expensive.push(lane);
  }
}

/** One request in a lane. */
interface Place {
  readonly lane: Lane;
  readonly caller: string;
  begun: boolean;
}

// Made once: while very many requests are refused, a stack for each would be much of the cost of a refusal.
const TOO_MANY_OF_CALLER = new VoltError(
  'OVERLOADED',
  'too many such requests of this caller wait',
);
const TOO_MANY = new VoltError('OVERLOADED', 'too many such requests wait on this host');

/** Requests of one kind, within limits; callers take turns. */
class Lane {
  readonly #bounds: Bounds;
  /**
   * For each caller the requests that wait to begin, first come first; the caller whose turn is longest ago comes
   * first.
   */
  readonly #queues = new Map<string, { readonly place: Place; readonly resolve: () => void }[]>();
  /** How many of each caller are here, waiting or under way. */
  readonly #here = new Map<string, number>();
  #all = 0;
  #underWay = 0;

  constructor(bounds: Bounds) {
    this.#bounds = bounds;
  }

  get isEmpty(): boolean {
    return this.#all === 0;
  }

  get waiting(): number {
    return this.#all - this.#underWay;
  }

  /** Whether one waits that may begin. */
  get ready(): boolean {
    return this.#queues.size > 0 && this.#underWay < this.#bounds.atOnce;
  }

  enter(caller: string): Place {
    const { shared, most } = this.#bounds;
    const own = this.#here.get(caller) ?? 0;
    const callers = this.#here.size + (own === 0 ? 1 : 0);
    if (this.#all >= shared && own >= shared / callers) throw TOO_MANY_OF_CALLER;
    if (this.#all >= most) throw TOO_MANY;
    this.#count(caller, 1);
    return { lane: this, caller, begun: false };
  }

  /** Resolves when its turn has come. */
  wait(place: Place): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const queue = this.#queues.get(place.caller);
    if (queue === undefined) this.#queues.set(place.caller, [{ place, resolve }]);
    else queue.push({ place, resolve });
    return promise;
  }

  beginNext(): void {
    const [first] = this.#queues;
    if (first === undefined) return;
    const [caller, queue] = first;
    const next = queue.shift();
    this.#queues.delete(caller);
    if (queue.length > 0) this.#queues.set(caller, queue);
    if (next === undefined) return;
    next.resolve();
    this.begin(next.place);
  }

  begin(place: Place): void {
    place.begun = true;
    this.#underWay += 1;
  }

  leave({ caller, begun }: Place): void {
    this.#count(caller, -1);
    if (begun) this.#underWay -= 1;
  }

  #count(caller: string, change: 1 | -1): void {
    this.#all += change;
    const here = (this.#here.get(caller) ?? 0) + change;
    if (here === 0) this.#here.delete(caller);
    else this.#here.set(caller, here);
  }
}
