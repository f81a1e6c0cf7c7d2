import { setImmediate as nextTurn } from 'node:timers/promises';
import { VoltError } from '#protocol/errors.ts';

/** The requests that begin in one turn of the event loop. The synchronous part of a change takes one to two milliseconds. */
const PER_TURN = { change: 4, read: 16 } as const;
/** The reads among them while changes wait. */
const READS_BESIDE_CHANGES = 2;

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

/** The attachment that a change is about, and the operation on it. */
export interface About {
  readonly operation: string;
  readonly id: string;
}

/** Who asks, and until when he waits (`performance.now()` time). */
export interface Who {
  readonly caller: string;
  readonly deadline: number;
  /** Called only if the request has to wait. Undefined if the request names no attachment. */
  readonly about?: () => About | undefined;
}

/** Thrown by a request that has turned out dearer than it looked: it waits again, in that lane. */
export type Move = (lane: LaneName) => Promise<void>;

/**
 * Lets requests in: changes before cheap reads, cheap reads before expensive ones; of the last one begins in each
 * turn of the event loop. Within a lane callers take turns, and so do the operations of one caller: his attach does not
 * wait for the hundreds of detaches that he has sent before. What he asks for one attachment keeps its order.
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
  #begun = { change: 0, read: 0 };
  #scheduled = false;
  readonly #crowded: () => boolean;

  /** `crowded`: whether enough changes are under way that wait for their kernel work. */
  constructor({ crowded = () => false }: { crowded?: () => boolean } = {}) {
    this.#crowded = crowded;
  }

  /** Whether changes wait or are under way. */
  get hasChanges(): boolean {
    return !this.#changes.isEmpty;
  }

  /**
   * Does the work in the caller's turn, which comes before `deadline` (`performance.now()` time) or not at all
   * (DEADLINE_EXCEEDED). OVERLOADED if too many requests are in its lane.
   */
  async passIn<T>(
    lane: LaneName,
    { caller, deadline, about }: Who,
    work: (move: Move) => Promise<T>,
  ): Promise<T> {
    let place: Place | undefined;
    const wait = async (name: LaneName): Promise<void> => {
      place?.lane.leave(place);
      place = undefined;
      place = this.#lane(name).enter(caller);
      await this.#turn(name, place, about);
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
  async #turn(name: LaneName, place: Place, about: Who['about']): Promise<void> {
    this.#schedule();
    const isFree = !this.#changes.ready && !this.#reads.ready;
    if ((name === 'change' || name === 'read') && isFree && this.#hasRoom(name)) {
      this.#begun[name] += 1;
      place.lane.begin(place);
      return;
    }
    await place.lane.wait(place, about?.());
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
    this.#begun = { change: 0, read: 0 };
    this.#beginFrom(this.#changes, PER_TURN.change, 'change');
    const reads = this.#changes.ready ? READS_BESIDE_CHANGES : PER_TURN.read;
    this.#beginFrom(this.#reads, reads, 'read');
    this.#beginExpensive();
  }

  /** Whether another request of this kind may begin in this turn. */
  #hasRoom(name: keyof typeof PER_TURN): boolean {
    return this.#begun[name] < PER_TURN[name] && !(name === 'change' && this.#crowded());
  }

  #beginFrom(lane: Lane, most: number, name: keyof typeof PER_TURN): void {
    while (this.#begun[name] < most && this.#hasRoom(name) && lane.ready) {
      lane.beginNext();
      this.#begun[name] += 1;
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

interface Waiting {
  readonly place: Place;
  /** The caller and the attachment; undefined where the request names none. */
  readonly subject: string | undefined;
  readonly resolve: () => void;
}

/** Requests of one kind, within limits; callers take turns. */
class Lane {
  readonly #bounds: Bounds;
  /**
   * For each caller, and each of his operations, the requests that wait to begin, first come first. The queue whose turn
   * is longest ago comes first.
   */
  readonly #queues = new Map<string, Waiting[]>();
  /** By caller and attachment: the queue in which requests about it wait, and how many. */
  readonly #subjects = new Map<string, { readonly queue: string; waiting: number }>();
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
  wait(place: Place, about: About | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const { caller } = place;
    const subject = about && `${caller} ${about.id}`;
    const own = about === undefined ? caller : `${caller} ${about.operation}`;
    const name = this.#noteSubject(subject, own);
    const queue = this.#queues.get(name);
    const waiting = { place, subject, resolve };
    if (queue === undefined) this.#queues.set(name, [waiting]);
    else queue.push(waiting);
    return promise;
  }

  /** The queue for a request: behind an earlier one about the same attachment, whatever that asks for. */
  #noteSubject(subject: string | undefined, own: string): string {
    if (subject === undefined) return own;
    const known = this.#subjects.get(subject) ?? { queue: own, waiting: 0 };
    this.#subjects.set(subject, known);
    known.waiting += 1;
    return known.queue;
  }

  beginNext(): void {
    const [first] = this.#queues;
    if (first === undefined) return;
    const [name, queue] = first;
    const next = queue.shift();
    this.#queues.delete(name);
    if (queue.length > 0) this.#queues.set(name, queue);
    if (next === undefined) return;
    const { subject } = next;
    const known = subject === undefined ? undefined : this.#subjects.get(subject);
    if (known !== undefined) known.waiting -= 1;
    if (known?.waiting === 0) this.#subjects.delete(subject ?? '');
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
