import {
  AckPolicy,
  type Consumer,
  type ConsumerConfig,
  type ConsumerInfo,
  DeliverPolicy,
  DiscardPolicy,
  ErrorCode,
  type JetStreamManager,
  nanos,
  type NatsConnection,
  NatsError,
  ReplayPolicy,
  RetentionPolicy,
  StorageType,
  type StreamConfig,
} from 'nats';
import { EVENT_STREAM, JOB_STREAM, jobConsumer, subjects } from '#protocol/subjects.ts';
import type { WhyNotPublished } from './pending-event.ts';

const DAY_MS = 86_400_000;
const EVENT_AGE_MS = 7 * DAY_MS;
const EVENT_BYTES = 1 << 30;
// An event is published again when its acknowledgement was lost: within one reconnect, as a rule.
const EVENT_DUPLICATE_WINDOW_MS = 10 * 60_000;
const JOB_AGE_MS = DAY_MS / 2;
const JOB_BYTES = 1 << 30;
const JOBS_PER_SUBJECT = 100_000;
const JOB_DUPLICATE_WINDOW_MS = 10 * 60_000;
/** How long a job may be under way without a word of it. */
const JOB_ACK_WAIT_MS = 10_000;
/** So often a job that is still under way says so. */
export const JOB_WORKING_MS = 3_000;
/** Jobs of one host under way at once. The agent counts these itself. */
export const MAX_JOBS_UNDER_WAY = 256;
/**
 * Jobs of one host that were delivered and are not done. Those that wait for their next try count, too: with a smaller
 * number, so many jobs that cannot be done yet (a network without a free address) held up all others.
 */
const MAX_JOBS_UNDONE = 3 * JOBS_PER_SUBJECT;
/** Beyond an `ack_wait`, and beyond a minute's pause as well. */
const STALLED_AFTER_MS = 15_000;
const UNREPEATED_AFTER_MS = 90_000;
/** JetStream's codes: no such stream, no such consumer, and one that is there with another configuration. */
const STREAM_NOT_FOUND = 10_059;
const CONSUMER_NOT_FOUND = 10_014;
const NOT_ENABLED_FOR_ACCOUNT = 10_039;

/** Errors of the library that name the message, and not the connection. */
const OF_THE_MESSAGE: ReadonlySet<string> = new Set([
  ErrorCode.MaxPayloadExceeded,
  ErrorCode.BadHeader,
  ErrorCode.BadPayload,
  ErrorCode.BadSubject,
  ErrorCode.InvalidPayload,
]);
/**
 * Of JetStream's answers: the message is larger than the stream takes, or its headers are (nats-server, errors.json). Its
 * number is no help: 400 stands as well for an account that is full (10002), or a stream that is sealed (10109).
 */
const TOO_LARGE_FOR_STREAM: ReadonlySet<number> = new Set([10_054, 10_097]);

/** What was made, was there as it should be, or is there in another way, which is left to whoever made it. */
export interface Ensured {
  readonly name: string;
  readonly outcome: 'made' | 'there' | 'differs';
  /** `max_age: 3600000000000, not 43200000000000` */
  readonly differences: readonly string[];
}

type Wanted = Partial<StreamConfig> & { readonly name: string };

const eventStream = (prefix: string): Wanted => ({
  name: EVENT_STREAM,
  subjects: [subjects(prefix).events()],
  retention: RetentionPolicy.Limits,
  storage: StorageType.File,
  max_age: nanos(EVENT_AGE_MS),
  max_bytes: EVENT_BYTES,
  duplicate_window: nanos(EVENT_DUPLICATE_WINDOW_MS),
});

/** A full queue refuses new jobs: their senders hear it, while those that were taken stay. */
const jobStream = (prefix: string): Wanted => ({
  name: JOB_STREAM,
  subjects: [subjects(prefix).allJobs()],
  retention: RetentionPolicy.Workqueue,
  storage: StorageType.File,
  discard: DiscardPolicy.New,
  discard_new_per_subject: true,
  max_msgs_per_subject: JOBS_PER_SUBJECT,
  max_age: nanos(JOB_AGE_MS),
  max_bytes: JOB_BYTES,
  duplicate_window: nanos(JOB_DUPLICATE_WINDOW_MS),
});

const consumerOf = (prefix: string, host: string): Partial<ConsumerConfig> => ({
  durable_name: jobConsumer(host),
  filter_subject: subjects(prefix).jobs(host),
  ack_policy: AckPolicy.Explicit,
  deliver_policy: DeliverPolicy.All,
  ack_wait: nanos(JOB_ACK_WAIT_MS),
  max_ack_pending: MAX_JOBS_UNDONE,
  // The agent counts, and says why it gives a job up; the server would only go silent.
  max_deliver: -1,
});

export const ensureEventStream = (manager: JetStreamManager, prefix: string): Promise<Ensured> =>
  ensureStream(manager, eventStream(prefix));

export const ensureJobStream = (manager: JetStreamManager, prefix: string): Promise<Ensured> =>
  ensureStream(manager, jobStream(prefix));

/** Both streams, and the consumers of these hosts. Throws NatsError. */
export async function ensureAll(
  manager: JetStreamManager,
  prefix: string,
  hosts: readonly string[],
): Promise<Ensured[]> {
  const ensured = [
    await ensureEventStream(manager, prefix),
    await ensureJobStream(manager, prefix),
  ];
  for (const host of hosts) ensured.push(await ensureJobConsumer(manager, prefix, host));
  return ensured;
}

/** The durable consumer of one host. Throws NatsError, too, where the job stream is not there. */
export async function ensureJobConsumer(
  manager: JetStreamManager,
  prefix: string,
  host: string,
): Promise<Ensured> {
  const wanted = consumerOf(prefix, host);
  const name = jobConsumer(host);
  try {
    const { config } = await manager.consumers.info(JOB_STREAM, name);
    return comparison(name, wanted, config);
  } catch (error) {
    if (!isApiError(error, CONSUMER_NOT_FOUND)) throw error;
  }
  await manager.consumers.add(JOB_STREAM, wanted);
  return { name, outcome: 'made', differences: [] };
}

/**
 * The consumer of a host's jobs. Where the streams are in another account than the agents, as in deploy/nats/, JetStream
 * answers nothing about it, and it is used unseen. Throws NatsError where it is not there.
 */
export async function findJobConsumer(
  connection: NatsConnection,
  host: string,
): Promise<{ consumer: Consumer; seen: boolean }> {
  const { consumers } = connection.jetstream();
  try {
    return { consumer: await consumers.get(JOB_STREAM, jobConsumer(host)), seen: true };
  } catch (error) {
    if (!isApiError(error, NOT_ENABLED_FOR_ACCOUNT)) throw error;
  }
  return { consumer: consumers.getPullConsumerFor(unseenConsumer(host)), seen: false };
}

/** What the library wants to be told of a consumer; it uses both names and the lack of a subject to deliver to. */
function unseenConsumer(host: string): ConsumerInfo {
  const none = { consumer_seq: 0, stream_seq: 0, last_active: 0 };
  return {
    stream_name: JOB_STREAM,
    name: jobConsumer(host),
    created: '',
    config: {
      durable_name: jobConsumer(host),
      ack_policy: AckPolicy.Explicit,
      deliver_policy: DeliverPolicy.All,
      replay_policy: ReplayPolicy.Instant,
    },
    delivered: none,
    ack_floor: none,
    num_ack_pending: 0,
    num_redelivered: 0,
    num_waiting: 0,
    num_pending: 0,
    push_bound: false,
    pause_remaining: 0,
  };
}

export interface JobCounts {
  readonly stored: number;
  /** What the consumer is still to deliver for the first time. */
  readonly pending: number;
  /** What it has delivered, and waits to hear of. */
  readonly unacknowledged: number;
  readonly delivered: number;
}

/** What the stream has of a host's jobs beside what its consumer makes of them. Throws NatsError. */
export async function countJobs(
  manager: JetStreamManager,
  prefix: string,
  host: string,
): Promise<JobCounts> {
  const { state } = await manager.streams.info(JOB_STREAM, {
    subjects_filter: subjects(prefix).jobs(host),
  });
  const counts: number[] = Object.values(state.subjects ?? {});
  const stored = counts.reduce((sum, one) => sum + one, 0);
  const consumer = await manager.consumers.info(JOB_STREAM, jobConsumer(host));
  return {
    stored,
    pending: consumer.num_pending,
    unacknowledged: consumer.num_ack_pending,
    delivered: consumer.delivered.consumer_seq,
  };
}

/**
 * Whether jobs that are stored are not going to come by themselves, when nothing was delivered for `quietMs` to an agent
 * that asks and has none under way: the consumer expects none of them, or has some that it could deliver at once, or
 * has not repeated any although the longest pause between two tries is over.
 */
export function areLeftBehind(
  { stored, pending, unacknowledged }: JobCounts,
  quietMs: number,
): boolean {
  if (stored === 0 || quietMs === 0) return false;
  if (pending + unacknowledged === 0) return true;
  const free = pending > 0 && unacknowledged < MAX_JOBS_UNDONE;
  return quietMs >= (free ? STALLED_AFTER_MS : UNREPEATED_AFTER_MS);
}

/** By the error with which the publication of an event has ended. */
export function whyNotStored(error: unknown): WhyNotPublished {
  if (!(error instanceof NatsError)) return 'later';
  if (OF_THE_MESSAGE.has(error.code)) return 'never';
  return TOO_LARGE_FOR_STREAM.has(error.api_error?.err_code ?? 0) ? 'never' : 'later';
}

/** Makes a stream that is not there; one that is there is not changed. Throws NatsError. */
async function ensureStream(manager: JetStreamManager, wanted: Wanted): Promise<Ensured> {
  const { name } = wanted;
  try {
    const { config } = await manager.streams.info(name);
    return comparison(name, wanted, config);
  } catch (error) {
    if (!isApiError(error, STREAM_NOT_FOUND)) throw error;
  }
  await manager.streams.add(wanted);
  return { name, outcome: 'made', differences: [] };
}

function comparison(name: string, wanted: object, found: object): Ensured {
  const there = new Map<string, unknown>(Object.entries(found));
  const differences = Object.entries(wanted).flatMap(([key, value]) => {
    const [is, should] = [there.get(key), value].map((one) => JSON.stringify(one));
    return is === should ? [] : [`${key}: ${is ?? 'not set'}, not ${should ?? ''}`];
  });
  return { name, outcome: differences.length === 0 ? 'there' : 'differs', differences };
}

const isApiError = (error: unknown, code: number): boolean =>
  error instanceof NatsError && error.api_error?.err_code === code;
