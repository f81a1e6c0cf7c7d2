import { setTimeout as sleep } from 'node:timers/promises';
import {
  ConsumerEvents,
  type ConsumerMessages,
  type JetStreamManager,
  type JsMsg,
  type NatsConnection,
} from 'nats';
import { jobStreamOf, subjects } from '#protocol/subjects.ts';
import {
  type BusProblem,
  BusProblemError,
  cannotBeAsked,
  jetStreamProblem,
} from './bus-problems.ts';
import { headersOf } from './inbound.ts';
import type { Delivery } from './jobs.ts';
import type { Log } from '../log.ts';
import { jittered } from '../schedule/rhythm.ts';
import {
  areLeftBehind,
  countJobs,
  findJobConsumer,
  type JobCounts,
  type JobPlace,
  MAX_JOBS_UNDER_WAY,
} from './job-consumer.ts';
import { JobFinder } from './job-finder.ts';
import { PendingJobs, QUIET_MS } from './pending-jobs.ts';
import type { StreamSettings } from './stream-settings.ts';

export interface JobQueueOptions {
  readonly host: string;
  readonly subjectPrefix: string;
  readonly streams: StreamSettings;
  readonly take: (delivery: Delivery) => Promise<void>;
  readonly log: Log;
}

/** So many jobs are asked for in advance; the others wait in the server. */
const PREFETCH = 64;
const LEFT_CHECK_MS = 5_000;
const ACK_TIMEOUT_MS = 5_000;
const RETRY_FIRST_MS = 500;
/** Jobs are taken again at most this long after the obstacle is gone. */
const RETRY_MOST_MS = 8_000;
/** How long one question for jobs lasts, and how often the server says meanwhile that the consumer is there. */
const ASKED_MS = 20_000;
const HEARTBEAT_MS = 4_000;
const FAILED_RETRY_MS = 1_000;

/**
 * This host's end of the job stream. While there is a connection it asks for jobs, and looks for the stream and its
 * consumer if they are missing. That no jobs can be had is a state that is reported.
 */
export class JobQueue {
  readonly #options: JobQueueOptions;
  #messages: ConsumerMessages | undefined;
  #problem: BusProblem | undefined = { name: 'jobs-not-taken', reason: 'not connected yet' };
  readonly #finder: JobFinder;
  /** Why this agent may not take the jobs of this host. */
  #refusal: string | undefined;
  #acting = Promise.withResolvers<void>();
  #stopped = false;
  #underWay = 0;
  readonly #pending = new PendingJobs();
  /** Since when jobs are asked for without one having come. */
  #quietSinceMs = 0;
  #slot = Promise.withResolvers<void>();

  constructor(options: JobQueueOptions) {
    this.#options = options;
    this.#finder = new JobFinder(options);
  }

  /** Why no jobs are taken; undefined when they are. */
  get problem(): BusProblem | undefined {
    return this.#problem;
  }

  /** Jobs that are under way, and those that wait in the stream. */
  get jobs(): { readonly underWay: number; readonly waiting: number } {
    const isAsking = this.#underWay < MAX_JOBS_UNDER_WAY;
    const quietMs = isAsking ? performance.now() - this.#quietSinceMs : 0;
    return { underWay: this.#underWay, waiting: this.#pending.count(quietMs) };
  }

  /**
   * Takes jobs if there is no `refusal`. Otherwise it leaves stream and consumer alone, since another machine takes
   * from the host's consumer; jobs that were fetched and not begun go back.
   */
  act(refusal: string | undefined): void {
    if (refusal === undefined) {
      this.#refusal = undefined;
      this.#acting.resolve();
      return;
    }
    if (this.#refusal === undefined) this.#acting = Promise.withResolvers<void>();
    this.#refusal = refusal;
    this.#problem = { name: 'jobs-not-taken', reason: refusal };
    this.#messages?.stop();
    this.#messages = undefined;
  }

  /** Takes jobs until the connection is closed. */
  async serve(connection: NatsConnection): Promise<void> {
    if (this.#refusal === undefined) {
      this.#problem = { name: 'jobs-not-taken', reason: 'not asked for yet' };
    }
    for (let waitMs = RETRY_FIRST_MS; !this.#stopped && !connection.isClosed();) {
      if (this.#refusal !== undefined) {
        await Promise.race([this.#acting.promise, connection.closed()]);
        continue;
      }
      try {
        const messages = await this.#open(connection);
        if (this.#isRefused()) {
          messages.stop();
          continue;
        }
        this.#messages = messages;
        this.#pending.clear();
        this.#quietSinceMs = performance.now();
        this.#setProblem(undefined);
        waitMs = RETRY_FIRST_MS;
        await this.#takeAll(messages);
      } catch (error) {
        if (this.#isRefused() || connection.isClosed()) continue;
        this.#finder.guessAgain();
        this.#setProblem(jetStreamProblem(error));
        await Promise.race([sleep(jittered(waitMs)), connection.closed()]);
        waitMs = Math.min(waitMs * 2, RETRY_MOST_MS);
      }
    }
  }

  /**
   * The server does not let this user publish there. If that is the subject on which jobs are asked for, no answer
   * comes.
   */
  noteRefused(subject: string): void {
    if (!subject.includes('.CONSUMER.MSG.NEXT.')) return;
    const reason = `NATS refuses to publish on ${subject}`;
    this.#messages?.stop(new BusProblemError({ name: 'publish-refused', subject, reason }));
  }

  stop(): void {
    this.#stopped = true;
    this.#messages?.stop();
  }

  /** Asked again after each wait. */
  #isRefused(): boolean {
    return this.#refusal !== undefined;
  }

  async #open(connection: NatsConnection): Promise<ConsumerMessages> {
    const { subjectPrefix, log } = this.#options;
    const manager = await connection.jetstreamManager({ checkAPI: false });
    const place = await this.#finder.find(manager);
    const { consumer, seen } = await findJobConsumer(connection, place);
    const messages = await consumer.consume({
      // One by one if the consumer is a guess and may be another fleet's.
      max_messages: seen || place.stream === jobStreamOf(subjectPrefix) ? PREFETCH : 1,
      expires: ASKED_MS,
      idle_heartbeat: HEARTBEAT_MS,
    });
    // The library leaves them waiting.
    void connection.closed().then(() => messages.stop());
    void this.#watch(messages).catch((error: unknown) => {
      log.warn(
        { error: String(error) },
        'job consumer: its state cannot be watched on this connection any more',
      );
    });
    if (!seen) return messages;
    void this.#deliverLeft(manager, { messages, place }).catch((error: unknown) => {
      log.warn(
        { error: String(error) },
        'jobs that the server left behind cannot be looked for on this connection any more',
      );
    });
    return messages;
  }

  /**
   * A server that was killed may remember that a job was acknowledged and forget that it is gone, or have lost jobs
   * that its consumer has counted, or stop delivering altogether (seen with 2.9.10). Jobs that are stored and that
   * nobody is going to deliver come through a new consumer. The agent knows which of them it has done.
   */
  async #deliverLeft(
    manager: JetStreamManager,
    { messages, place }: { messages: ConsumerMessages; place: JobPlace },
  ): Promise<void> {
    const { host, subjectPrefix: prefix, log } = this.#options;
    let before = -1;
    for (let quietMs = 0; ;) {
      const waitMs = jittered(LEFT_CHECK_MS);
      await sleep(waitMs, undefined, { ref: false });
      if (this.#stopped || this.#messages !== messages) return;
      let counts: JobCounts;
      try {
        counts = await countJobs(manager, { prefix, host, place });
      } catch (error) {
        if (cannotBeAsked(error)) return;
        log.debug(
          { error: String(error) },
          'cannot look for jobs that the server left behind: trying again soon',
        );
        continue;
      }
      if (counts.stored === 0) return;
      const quiet = counts.delivered === before && this.#underWay === 0;
      quietMs = quiet ? quietMs + waitMs : 0;
      before = counts.delivered;
      if (!areLeftBehind(counts, quietMs)) continue;
      if (this.#messages !== messages) return;
      log.warn(
        { ...counts },
        'jobs found that the server had left behind: consumer made again, so that it delivers them',
      );
      await manager.consumers.delete(place.stream, place.consumer);
      return messages.stop();
    }
  }

  /** Ends the taking when the server says that the consumer or the stream is gone, or says nothing at all. */
  async #watch(messages: ConsumerMessages): Promise<void> {
    for await (const { type } of await messages.status()) {
      const reason = GONE.get(type);
      if (reason === undefined) continue;
      messages.stop(new BusProblemError({ name: 'jetstream-away', reason }));
    }
  }

  async #takeAll(messages: ConsumerMessages): Promise<void> {
    const { subjectPrefix, host } = this.#options;
    const ours = subjects(subjectPrefix).jobs(host).replace(/\*$/, '');
    for await (const message of messages) {
      if (!message.subject.startsWith(ours)) {
        quietly(this.#options.log, () => message.nak());
        throw foreign(message);
      }
      const prompt = this.#isPrompt(message);
      this.#pending.noteDelivered({ sequence: message.seq, undelivered: message.info.pending });
      this.#quietSinceMs = performance.now();
      void this.#takeOne(message, prompt);
      while (this.#underWay >= MAX_JOBS_UNDER_WAY) {
        this.#slot = Promise.withResolvers<void>();
        await this.#slot.promise;
        this.#quietSinceMs = performance.now();
      }
    }
  }

  /** Whether the job was stored just now: the server had nothing left to deliver, and has nothing behind it. */
  #isPrompt({ info }: JsMsg): boolean {
    const quietMs = performance.now() - this.#quietSinceMs;
    return (
      this.#underWay === 0 && quietMs >= QUIET_MS && info.deliveryCount === 1 && info.pending === 0
    );
  }

  /** An exception of one job ends here: other jobs do not wait, and the job comes again. Never rejects. */
  async #takeOne(message: JsMsg, prompt: boolean): Promise<void> {
    const { take, log } = this.#options;
    if (this.#isRefused()) {
      quietly(log, () => message.nak());
      return;
    }
    this.#underWay += 1;
    try {
      const delivery = deliveryOf(message, prompt, log);
      await take({
        ...delivery,
        again: (delayMs) => {
          this.#pending.noteLater(message.seq, delayMs);
          delivery.again(delayMs);
        },
      });
    } catch (error) {
      const { subject } = message;
      log.error({ subject, error: String(error) }, 'a job failed outside its operation');
      quietly(log, () => message.nak(FAILED_RETRY_MS));
    } finally {
      this.#underWay -= 1;
      this.#slot.resolve();
    }
  }

  #setProblem(problem: BusProblem | undefined): void {
    const before = this.#problem?.reason;
    this.#problem = problem;
    if (problem?.reason === before) return;
    const { log } = this.#options;
    if (problem === undefined) log.info({}, 'jobs are taken');
    else log.warn({ problem: problem.reason }, 'no jobs are taken');
  }
}

/** The words of the library for a consumer that does not answer as one that is there. */
const GONE: ReadonlyMap<string, string> = new Map([
  [ConsumerEvents.ConsumerDeleted, 'the consumer of this host was deleted'],
  [ConsumerEvents.ConsumerNotFound, 'the consumer of this host is gone'],
  [ConsumerEvents.StreamNotFound, 'the stream of jobs is gone'],
  [
    ConsumerEvents.NoResponders,
    'nobody gives out jobs: JetStream is off on this server, or lends this account no stream of jobs',
  ],
  [
    ConsumerEvents.HeartbeatsMissed,
    "JetStream says nothing of this host's jobs: the stream has no leader, or is gone",
  ],
]);

/** Whoever takes from another host's consumer takes that host's jobs: they go back. */
const foreign = ({ subject, info }: JsMsg): BusProblemError =>
  new BusProblemError({
    name: 'consumer-unfit',
    subject: info.consumer,
    reason: `consumer ${info.consumer} of stream ${info.stream} delivers ${subject}, which is not for this host`,
  });

function deliveryOf(message: JsMsg, prompt: boolean, log: Log): Delivery {
  const { timestampNanos, deliveryCount } = message.info;
  return {
    subject: message.subject,
    payload: message.data,
    headers: headersOf(message),
    position: { storedNs: BigInt(timestampNanos), sequence: message.seq },
    deliveries: deliveryCount,
    prompt,
    done: async () => {
      if (await message.ackAck({ timeout: ACK_TIMEOUT_MS })) return;
      throw new Error('the server did not confirm the acknowledgement');
    },
    again: (delayMs) => quietly(log, () => message.nak(delayMs)),
    working: () => quietly(log, () => message.working()),
  };
}

/** The connection may be closed; then the server delivers the job again by itself. */
function quietly(log: Log, say: () => void): void {
  try {
    say();
  } catch (error) {
    log.debug(
      { error: String(error) },
      'job: its acknowledgement could not be sent; the server delivers it again',
    );
  }
}
