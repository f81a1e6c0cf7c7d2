import type { Bus, BusEndpoint, BusOptions } from '#agent/bus/bus.ts';
import { decode, encode } from '#protocol/envelope.ts';
import { eventId } from '#protocol/events.ts';
import { subjects } from '#protocol/subjects.ts';
import { type Clock, inside, type Life, NEVER } from './clock.ts';

/** What may be wrong with NATS, to see that a simulation finds it. */
export type BusMistake = 'event-lost';

export type Operation = 'attach' | 'detach';

export interface Request {
  readonly id: string;
  readonly requestId: string;
  readonly [key: string]: unknown;
}

export interface Job {
  readonly host: string;
  readonly operation: Operation;
  readonly request: Request;
  readonly sequence: number;
  readonly storedNs: bigint;
  deliveries: number;
  done: boolean;
}

export interface StoredEvent {
  readonly id: string;
  readonly host: string;
  readonly type: string;
  readonly subject: string;
  readonly body: Readonly<Record<string, unknown>>;
}

interface Member {
  readonly host: string;
  readonly life: Life;
  readonly options: BusOptions;
  taking: boolean;
  /** The subjects and jobs of its host are its to serve. */
  acting: boolean;
}

const ACK_WAIT_MS = 4_000;
const MAX_PAYLOAD = 1 << 20;

/** NATS between callers and agents: requests, the job stream, the event stream. */
export class ModelBus {
  readonly jobs: Job[] = [];
  readonly events: StoredEvent[] = [];
  readonly #clock: Clock;
  readonly #mistake: BusMistake | undefined;
  readonly #members = new Map<string, Member>();
  readonly #eventIds = new Map<string, StoredEvent>();
  /** Machines that do not reach it. */
  readonly away = new Set<string>();
  loss = 0;
  duplication = 0;
  /** The same event id with something else in it. */
  onConflict: (first: StoredEvent, second: StoredEvent) => void = () => {};

  constructor(clock: Clock, mistake?: BusMistake) {
    this.#clock = clock;
    this.#mistake = mistake;
  }

  /** `place`: which machine it is, of two that call themselves the host. */
  connect(place: string, host: string, life: Life, options: BusOptions): Bus {
    const member: Member = { host, life, options, taking: true, acting: false };
    this.#members.set(place, member);
    const face: Partial<Pick<Bus, keyof Bus>> = {
      start: () => {
        this.#clock.after(5, life, () => options.onState('connected'));
      },
      act: (refusal) => {
        member.acting = refusal === undefined;
      },
      stopTaking: async () => {
        member.taking = false;
      },
      close: () => Promise.resolve(),
      notify: () => {},
      listen: () => () => {},
      survey: () => Promise.resolve([]),
      problems: () => [],
      publishEvent: (event) => this.#publish({ place, host, life }, event),
    };
    Object.defineProperty(face, 'state', { get: () => 'connected' });
    Object.defineProperty(face, 'maxPayload', { get: () => MAX_PAYLOAD });
    return face as Bus;
  }

  /** NATS is there again for a machine. */
  back(place: string): void {
    this.away.delete(place);
    const member = this.#members.get(place);
    if (member === undefined || member.life.dead) return;
    inside(member.life, () => member.options.onState('connected'));
  }

  /** The answer, or undefined for one that did not come in time. */
  request(
    host: string,
    operation: Operation,
    request: Request,
    timeoutMs: number,
  ): Promise<Readonly<Record<string, unknown>> | undefined> {
    const { chance, world } = this.#clock;
    return new Promise((resolve) => {
      this.#clock.after(timeoutMs, world, () => resolve(undefined));
      this.#clock.after(chance.between(0, 5), world, () => {
        const [place, member] = this.#serving(host);
        if (member === undefined || this.#isLost(place)) return;
        const endpoint = member.options.endpoints.find((one) => one.name === operation);
        if (endpoint === undefined) throw new Error(`no endpoint ${operation}`);
        void inside(member.life, () => answerOf(endpoint, request, timeoutMs)).then((answer) => {
          if (member.life.dead || this.#isLost(place)) return;
          this.#clock.after(chance.between(0, 5), world, () => resolve(answer));
        });
      });
    });
  }

  addJob(host: string, operation: Operation, request: Request): void {
    const storedNs = BigInt(this.#clock.dateMs) * 1_000_000n;
    const job: Job = {
      host,
      operation,
      request,
      sequence: this.jobs.length + 1,
      storedNs,
      deliveries: 0,
      done: false,
    };
    this.jobs.push(job);
    this.#clock.note(`job ${job.sequence} ${host} ${operation} ${request.id} ${request.requestId}`);
    this.#deliverAfter(job, this.#clock.chance.between(0, 20));
    if (this.#clock.chance.happens(this.duplication)) {
      this.#deliverAfter(job, this.#clock.chance.between(0, 2_000));
    }
  }

  #deliverAfter(job: Job, delayMs: number): void {
    this.#clock.after(delayMs, this.#clock.world, () => this.#deliver(job));
  }

  #deliver(job: Job): void {
    if (job.done) return;
    const [place, member] = this.#serving(job.host);
    if (member === undefined || this.away.has(place)) {
      this.#deliverAfter(job, 200);
      return;
    }
    const { life, options } = member;
    const { chance, world } = this.#clock;
    job.deliveries += 1;
    const delivery = job.deliveries;
    const redeliver = (): void => {
      if (job.deliveries === delivery) this.#deliver(job);
    };
    let waiting = this.#clock.after(ACK_WAIT_MS, world, redeliver);
    const { host, operation, request, sequence, storedNs } = job;
    this.#clock.note(`delivery ${delivery} of job ${sequence}`);
    inside(life, () =>
      options.takeJob({
        subject: subjects(options.subjectPrefix).job(host, operation),
        payload: encode(request),
        headers: { trace: {} },
        position: { storedNs, sequence },
        deliveries: delivery,
        prompt: false,
        done: () => {
          if (life.dead) return NEVER;
          return new Promise((resolve, reject) => {
            this.#clock.after(chance.between(0, 4), world, () => {
              if (this.#isLost(place)) {
                this.#clock.after(50, life, () => reject(new Error('no acknowledgement')));
                return;
              }
              job.done = true;
              this.#clock.cancel(waiting);
              this.#clock.note(`job ${sequence} done`);
              this.#clock.after(1, life, resolve);
            });
          });
        },
        again: (delayMs) => {
          if (life.dead) return;
          this.#clock.cancel(waiting);
          waiting = this.#clock.after(delayMs, world, redeliver);
        },
        working: () => {
          if (life.dead) return;
          this.#clock.cancel(waiting);
          waiting = this.#clock.after(ACK_WAIT_MS, world, redeliver);
        },
      }),
    ).catch((error: unknown) => {
      throw new Error('taking a job threw', { cause: error });
    });
  }

  #publish(
    { place, host, life }: { place: string; host: string; life: Life },
    event: Parameters<Bus['publishEvent']>[0],
  ): Promise<void> {
    if (life.dead) return NEVER;
    const { chance, world } = this.#clock;
    return new Promise((resolve, reject) => {
      const refuse = (): void => reject(new Error('no acknowledgement'));
      this.#clock.after(chance.between(0, 4), world, () => {
        if (this.#isLost(place)) {
          this.#clock.after(20, life, refuse);
          return;
        }
        this.#store(host, event);
        this.#clock.after(chance.between(0, 4), life, this.#isLost(place) ? refuse : resolve);
      });
    });
  }

  #store(host: string, event: Parameters<Bus['publishEvent']>[0]): void {
    const body = decode(event.payload) as Readonly<Record<string, unknown>>;
    const type = event.subject.split('.').at(-1) ?? '';
    const subject = event.headers['ce-subject'] ?? '';
    const stored: StoredEvent = { id: event.id, host, type, subject, body };
    const first = this.#eventIds.get(event.id);
    if (first !== undefined) return this.onConflict(first, stored);
    this.#eventIds.set(event.id, stored);
    if (this.#mistake === 'event-lost' && this.#clock.chance.happens(0.05)) return;
    this.events.push(stored);
    const { generation = '', reason = '', error } = body;
    const code = (error as { code?: string } | undefined)?.code ?? '';
    this.#clock.note(
      `event ${host} ${type} ${subject} ${String(generation)} ${String(reason)}${code}`,
    );
  }

  /** The event that ended a request. */
  outcomeOf(host: string, operation: Operation, requestId: string): StoredEvent | undefined {
    return this.#eventIds.get(eventId({ host, operation, requestId }));
  }

  /** Of those that take what is for a host, one. */
  #serving(host: string): [place: string, member: Member | undefined] {
    const serving = [...this.#members].filter(
      ([, one]) => one.host === host && one.taking && one.acting && !one.life.dead,
    );
    return serving.length === 0 ? [host, undefined] : this.#clock.chance.pick(serving);
  }

  #isLost(place: string): boolean {
    return this.away.has(place) || this.#clock.chance.happens(this.loss);
  }
}

async function answerOf(
  endpoint: BusEndpoint,
  request: Request,
  timeoutMs: number,
): Promise<Readonly<Record<string, unknown>>> {
  const { payload } = await endpoint.answer({
    subject: endpoint.subject,
    caller: 'somebody',
    payload: encode(request),
    headers: { trace: {}, timeoutMs },
  });
  return decode(payload) as Readonly<Record<string, unknown>>;
}
