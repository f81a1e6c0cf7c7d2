import { setTimeout as sleep } from 'node:timers/promises';
import {
  ConsumerEvents,
  type ConsumerMessages,
  type JetStreamManager,
  type JsMsg,
  type NatsConnection,
} from 'nats';
import { JOB_STREAM, jobConsumer } from '#protocol/subjects.ts';
import { headersOf } from './inbound.ts';
import type { Delivery } from './jobs.ts';
import type { Log } from './log.ts';
import { jittered } from './rhythm.ts';
import {
  areLeftBehind,
  countJobs,
  ensureJobConsumer,
  ensureJobStream,
  findJobConsumer,
  MAX_JOBS_UNDER_WAY,
} from './streams.ts';

export interface JobQueueOptions {
  readonly host: string;
  readonly subjectPrefix: string;
  readonly take: (delivery: Delivery) => Promise<void>;
  readonly log: Log;
}

/** Asked for in advance; the rest of what may be under way waits in the server. */
const PREFETCH = 64;
const LEFT_CHECK_MS = 5_000;
const ACK_TIMEOUT_MS = 5_000;
const RETRY_FIRST_MS = 500;
const RETRY_MOST_MS = 15_000;
const FAILED_RETRY_MS = 1_000;
/** When no job has come for so long, none was there. */
const QUIET_MS = 1_000;

/**
 * This host's end of the job stream: asks for jobs as long as there is a connection, and for the stream and its
 * consumer where they are missing. That they cannot be had is a reported state.
 */
export class JobQueue {
  readonly #options: JobQueueOptions;
  #messages: ConsumerMessages | undefined;
  #problem: string | undefined = 'not connected yet';
  /** Why the jobs of this host are not this agent's to take. */
  #refusal: string | undefined;
  #acting = Promise.withResolvers<void>();
  #stopped = false;
  #underWay = 0;
  /** Since when jobs are asked for, and none has come. */
  #quietSinceMs = 0;
  #slot = Promise.withResolvers<void>();

  constructor(options: JobQueueOptions) {
    this.#options = options;
  }

  /** Why no jobs are taken; undefined when they are. */
  get problem(): string | undefined {
    return this.#problem;
  }

  /**
   * Takes jobs where there is no `refusal`, and else leaves stream and consumer alone: the consumer is the host's, and
   * another machine takes from it. What was fetched and not begun goes back.
   */
  act(refusal: string | undefined): void {
    if (refusal === undefined) {
      this.#refusal = undefined;
      this.#acting.resolve();
      return;
    }
    if (this.#refusal === undefined) this.#acting = Promise.withResolvers<void>();
    this.#refusal = refusal;
    this.#problem = refusal;
    this.#messages?.stop();
    this.#messages = undefined;
  }

  /** Takes jobs until the connection is closed for good. */
  async serve(connection: NatsConnection): Promise<void> {
    const { log } = this.#options;
    for (let waitMs = RETRY_FIRST_MS; !this.#stopped && !connection.isClosed();) {
      if (this.#refusal !== undefined) {
        await this.#acting.promise;
        continue;
      }
      try {
        const messages = await this.#open(connection);
        if (this.#isRefused()) {
          messages.stop();
          continue;
        }
        this.#messages = messages;
        this.#quietSinceMs = performance.now();
        this.#setProblem(undefined);
        waitMs = RETRY_FIRST_MS;
        await this.#takeAll(messages);
      } catch (error) {
        if (this.#isRefused()) continue;
        this.#setProblem(error instanceof Error ? error.message : String(error));
        log.debug({ error: String(error) }, 'no jobs');
        await sleep(jittered(waitMs));
        waitMs = Math.min(waitMs * 2, RETRY_MOST_MS);
      }
    }
  }

  /** Asks anew: what was asked for went with the server. */
  again(): void {
    this.#messages?.stop();
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
    const { host } = this.#options;
    const manager = await connection.jetstreamManager({ checkAPI: false });
    await this.#ensure(manager);
    const { consumer, seen } = await findJobConsumer(connection, host);
    const messages = await consumer.consume({ max_messages: PREFETCH });
    const { log } = this.#options;
    void this.#watch(messages, seen).catch((error: unknown) => {
      log.warn({ error: String(error) }, 'the state of the job consumer is not watched any more');
    });
    void this.#deliverLeft(manager, messages).catch((error: unknown) => {
      log.debug({ error: String(error) }, 'cannot look for jobs left behind');
    });
    return messages;
  }

  /**
   * A server that was killed may remember that a job was acknowledged and not that it went, or have lost jobs that its
   * consumer has counted, or stop delivering altogether (seen with 2.9.10). Jobs that are stored and that nobody is going
   * to deliver come through a consumer made anew: what has been done is known here.
   */
  async #deliverLeft(manager: JetStreamManager, messages: ConsumerMessages): Promise<void> {
    const { host, subjectPrefix, log } = this.#options;
    let before = -1;
    for (let quietMs = 0; ;) {
      const waitMs = jittered(LEFT_CHECK_MS);
      await sleep(waitMs, undefined, { ref: false });
      if (this.#stopped || this.#messages !== messages) return;
      const counts = await countJobs(manager, subjectPrefix, host);
      if (counts.stored === 0) return;
      const quiet = counts.delivered === before && this.#underWay === 0;
      quietMs = quiet ? quietMs + waitMs : 0;
      before = counts.delivered;
      if (!areLeftBehind(counts, quietMs)) continue;
      if (this.#messages !== messages) return;
      log.warn({ ...counts }, 'jobs left behind by the server: delivered again');
      await manager.consumers.delete(JOB_STREAM, jobConsumer(host));
      return messages.stop();
    }
  }

  /** Where the agent's permissions do not allow it, an administrator has made them, or what follows says what lacks. */
  async #ensure(manager: JetStreamManager): Promise<void> {
    const { host, subjectPrefix, log } = this.#options;
    for (const ensure of [
      () => ensureJobStream(manager, subjectPrefix),
      () => ensureJobConsumer(manager, subjectPrefix, host),
    ]) {
      try {
        const { name, outcome, differences } = await ensure();
        if (outcome === 'differs')
          log.warn({ name, differences }, 'JetStream: configured otherwise');
      } catch (error) {
        log.debug({ error: String(error) }, 'cannot look after the job stream');
      }
    }
  }

  /**
   * Ends the taking when the server says that there is nothing to take from any more. Of a consumer that cannot be looked at,
   * silence says it.
   */
  async #watch(messages: ConsumerMessages, seen: boolean): Promise<void> {
    for await (const { type } of await messages.status()) {
      const gone =
        (!seen && type === ConsumerEvents.HeartbeatsMissed) ||
        type === ConsumerEvents.ConsumerDeleted ||
        type === ConsumerEvents.ConsumerNotFound ||
        type === ConsumerEvents.StreamNotFound;
      if (gone) messages.stop(new Error('the job stream or its consumer is gone'));
    }
  }

  async #takeAll(messages: ConsumerMessages): Promise<void> {
    for await (const message of messages) {
      const prompt = this.#isPrompt(message);
      this.#quietSinceMs = performance.now();
      void this.#takeOne(message, prompt);
      while (this.#underWay >= MAX_JOBS_UNDER_WAY) {
        this.#slot = Promise.withResolvers<void>();
        await this.#slot.promise;
      }
    }
  }

  /** Whether it was stored just now: the server had nothing left to deliver, and has nothing behind it. */
  #isPrompt({ info }: JsMsg): boolean {
    const quietMs = performance.now() - this.#quietSinceMs;
    return (
      this.#underWay === 0 && quietMs >= QUIET_MS && info.deliveryCount === 1 && info.pending === 0
    );
  }

  /** What one job throws ends here: its neighbours do not wait, and it comes again. Rejects never. */
  async #takeOne(message: JsMsg, prompt: boolean): Promise<void> {
    const { take, log } = this.#options;
    if (this.#isRefused()) {
      quietly(log, () => message.nak());
      return;
    }
    this.#underWay += 1;
    try {
      await take(deliveryOf(message, prompt, log));
    } catch (error) {
      const { subject } = message;
      log.error({ subject, error: String(error) }, 'a job failed outside its operation');
      quietly(log, () => message.nak(FAILED_RETRY_MS));
    } finally {
      this.#underWay -= 1;
      this.#slot.resolve();
    }
  }

  #setProblem(problem: string | undefined): void {
    if (problem === this.#problem) return;
    this.#problem = problem;
    const { log } = this.#options;
    if (problem === undefined) log.info({}, 'jobs are taken');
    else log.warn({ problem }, 'no jobs are taken');
  }
}

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
    log.debug({ error: String(error) }, 'NATS is not told of a job');
  }
}
