import {
  AckPolicy,
  type Consumer,
  type ConsumerConfig,
  type ConsumerInfo,
  DeliverPolicy,
  type JetStreamManager,
  nanos,
  type NatsConnection,
  ReplayPolicy,
} from 'nats';
import {
  DEFAULT_PREFIX,
  JOB_STREAM,
  jobConsumer,
  jobStreamOf,
  subjects,
} from '#protocol/subjects.ts';
import { cannotBeAsked, isApiError, JETSTREAM } from './bus-problems.ts';
import { consumerFlaw } from './stream-flaws.ts';
import { comparison, type Ensured, JOBS_PER_SUBJECT, made } from './streams.ts';

/** After this time without a word the server delivers a job again. */
const JOB_ACK_WAIT_MS = 10_000;
/** How often the agent says that a job is still under way. */
export const JOB_WORKING_MS = 3_000;
/** How many jobs of one host are under way at once. The agent counts these itself. */
export const MAX_JOBS_UNDER_WAY = 256;
/**
 * How many jobs of one host are delivered and not done. Jobs that wait for their next try count, too: with a smaller
 * number, that many jobs that could not be done yet (a network without a free address) held up all others.
 */
const MAX_JOBS_UNDONE = 3 * JOBS_PER_SUBJECT;
/** Longer than `ack_wait`, and than a minute's pause. */
const STALLED_AFTER_MS = 15_000;
const UNREPEATED_AFTER_MS = 90_000;

/** Where JetStream has the jobs of one host. */
export interface JobPlace {
  readonly stream: string;
  readonly consumer: string;
}

/**
 * Where the jobs of a host may be: a fleet with its own prefix may have streams from a time before names had the
 * prefix.
 */
export const jobPlaces = (prefix: string, host: string): readonly JobPlace[] => [
  { stream: jobStreamOf(prefix), consumer: jobConsumer(host, prefix) },
  ...(prefix === DEFAULT_PREFIX ? [] : [{ stream: JOB_STREAM, consumer: jobConsumer(host) }]),
];

const consumerOf = (prefix: string, host: string, name: string): Partial<ConsumerConfig> => ({
  durable_name: name,
  filter_subject: subjects(prefix).jobs(host),
  ack_policy: AckPolicy.Explicit,
  ack_wait: nanos(JOB_ACK_WAIT_MS),
  max_ack_pending: MAX_JOBS_UNDONE,
  // The agent counts deliveries, and says why it gives a job up; the server would only stop delivering.
  max_deliver: -1,
});

/** The durable consumer of one host in a stream of jobs. Throws NatsError, and BusProblemError as above. */
export async function ensureJobConsumer(
  manager: JetStreamManager,
  { prefix, host, stream }: { prefix: string; host: string; stream: string },
): Promise<Ensured> {
  const name = consumerIn(stream, { prefix, host });
  const wanted = consumerOf(prefix, host, name);
  try {
    const { config } = await manager.consumers.info(stream, name);
    return comparison(name, wanted, config, consumerFlaw(config, subjects(prefix).jobs(host)));
  } catch (error) {
    if (!isApiError(error, JETSTREAM.consumerNotFound)) throw error;
  }
  await made('consumer-missing', name, () => manager.consumers.add(stream, wanted));
  return { name, outcome: 'made', differences: [] };
}

export const consumerIn = (
  stream: string,
  { prefix, host }: { prefix: string; host: string },
): string => jobConsumer(host, stream === jobStreamOf(prefix) ? prefix : DEFAULT_PREFIX);

/**
 * The consumer at this place. If the streams are in another account than the agents, as in deploy/nats/, JetStream
 * answers nothing about it, and it is used unseen. Throws NatsError if it is missing.
 */
export async function findJobConsumer(
  connection: NatsConnection,
  place: JobPlace,
): Promise<{ consumer: Consumer; seen: boolean }> {
  const { consumers } = connection.jetstream();
  try {
    return { consumer: await consumers.get(place.stream, place.consumer), seen: true };
  } catch (error) {
    if (!cannotBeAsked(error)) throw error;
  }
  return { consumer: consumers.getPullConsumerFor(unseenConsumer(place)), seen: false };
}

/** The part of a consumer's description that the library uses: both names, and no subject to deliver to. */
function unseenConsumer({ stream, consumer }: JobPlace): ConsumerInfo {
  const none = { consumer_seq: 0, stream_seq: 0, last_active: 0 };
  return {
    stream_name: stream,
    name: consumer,
    created: '',
    config: {
      durable_name: consumer,
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
  /** The number of jobs that the consumer has yet to deliver for the first time. */
  readonly pending: number;
  /** What it has delivered, and waits to hear of. */
  readonly unacknowledged: number;
  readonly delivered: number;
}

/** How many jobs of a host the stream has, and what its consumer says of them. Throws NatsError. */
export async function countJobs(
  manager: JetStreamManager,
  { prefix, host, place }: { prefix: string; host: string; place: JobPlace },
): Promise<JobCounts> {
  const { state } = await manager.streams.info(place.stream, {
    subjects_filter: subjects(prefix).jobs(host),
  });
  const counts: number[] = Object.values(state.subjects ?? {});
  const stored = counts.reduce((sum, one) => sum + one, 0);
  const consumer = await manager.consumers.info(place.stream, place.consumer);
  return {
    stored,
    pending: consumer.num_pending,
    unacknowledged: consumer.num_ack_pending,
    delivered: consumer.delivered.consumer_seq,
  };
}

/**
 * Whether stored jobs are not going to come by themselves, after nothing was delivered for `quietMs` to an agent that
 * asks and has none under way. That is so if the consumer expects no jobs, or could deliver some at once, or has
 * repeated none although the longest pause between two tries is over.
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
