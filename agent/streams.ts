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
import {
  DEFAULT_PREFIX,
  EVENT_STREAM,
  eventStreamOf,
  JOB_STREAM,
  jobConsumer,
  jobStreamOf,
  subjects,
} from '#protocol/subjects.ts';
import {
  BusProblemError,
  type BusProblemName,
  cannotBeAsked,
  isApiError,
  JETSTREAM,
  jetStreamReason,
} from './bus-problems.ts';
import type { WhyNotPublished } from './pending-event.ts';
import { areCovered, consumerFlaw, eventStreamFlaw, jobStreamFlaw } from './stream-flaws.ts';

/** How streams are made: the section `nats.streams` of agent.json. */
export interface StreamSettings {
  readonly replicas: number;
  readonly storage: 'file' | 'memory';
  readonly eventAgeSeconds: number;
  readonly eventBytes: number;
  readonly jobAgeSeconds: number;
  readonly jobBytes: number;
}

const DAY_SECONDS = 86_400;
export const DEFAULT_STREAMS: StreamSettings = {
  replicas: 1,
  storage: 'file',
  eventAgeSeconds: 7 * DAY_SECONDS,
  eventBytes: 1 << 30,
  jobAgeSeconds: DAY_SECONDS / 2,
  jobBytes: 1 << 30,
};

// An event is published again when its acknowledgement was lost: within one reconnect, as a rule.
const DUPLICATE_WINDOW_MS = 10 * 60_000;
const JOBS_PER_SUBJECT = 100_000;
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

/** What was made, changed, was there as it should be, or is there in another way, which is left to whoever made it. */
export interface Ensured {
  readonly name: string;
  readonly outcome: 'made' | 'updated' | 'there' | 'differs' | 'unfit';
  /** `max_age: 3600000000000, not 43200000000000`; of one that is unfit why it is not used. */
  readonly differences: readonly string[];
}

/** Whose streams, and how they are made. */
export interface Fleet {
  readonly prefix: string;
  readonly settings: StreamSettings;
  /** Whose part of their subjects is needed at least; without, all. */
  readonly host?: string;
  /** In what a stream that is there should be as the settings say, too. In everything else its maker has decided. */
  readonly given?: readonly (keyof StreamSettings)[];
}

/** Which setting a part of a stream's configuration comes from. */
const EVENT_SETTINGS = {
  num_replicas: 'replicas',
  storage: 'storage',
  max_age: 'eventAgeSeconds',
  max_bytes: 'eventBytes',
} as const;
const JOB_SETTINGS = {
  ...EVENT_SETTINGS,
  max_age: 'jobAgeSeconds',
  max_bytes: 'jobBytes',
} as const;

/** Where JetStream has the jobs of one host. */
export interface JobPlace {
  readonly stream: string;
  readonly consumer: string;
}

type Wanted = Partial<StreamConfig> & { readonly name: string };

const eventStream = ({ prefix, settings }: Fleet): Wanted => ({
  name: eventStreamOf(prefix),
  subjects: [subjects(prefix).events()],
  retention: RetentionPolicy.Limits,
  storage: storageOf(settings),
  num_replicas: settings.replicas,
  max_age: nanos(settings.eventAgeSeconds * 1_000),
  max_bytes: settings.eventBytes,
  duplicate_window: nanos(Math.min(DUPLICATE_WINDOW_MS, settings.eventAgeSeconds * 1_000)),
});

/** A full queue refuses new jobs: their senders hear it, while those that were taken stay. */
const jobStream = ({ prefix, settings }: Fleet): Wanted => ({
  name: jobStreamOf(prefix),
  subjects: [subjects(prefix).allJobs()],
  retention: RetentionPolicy.Workqueue,
  storage: storageOf(settings),
  num_replicas: settings.replicas,
  discard: DiscardPolicy.New,
  discard_new_per_subject: true,
  max_msgs_per_subject: JOBS_PER_SUBJECT,
  max_age: nanos(settings.jobAgeSeconds * 1_000),
  max_bytes: settings.jobBytes,
  duplicate_window: nanos(Math.min(DUPLICATE_WINDOW_MS, settings.jobAgeSeconds * 1_000)),
});

const storageOf = ({ storage }: StreamSettings): StorageType =>
  storage === 'file' ? StorageType.File : StorageType.Memory;

const consumerOf = (prefix: string, host: string, name: string): Partial<ConsumerConfig> => ({
  durable_name: name,
  filter_subject: subjects(prefix).jobs(host),
  ack_policy: AckPolicy.Explicit,
  ack_wait: nanos(JOB_ACK_WAIT_MS),
  max_ack_pending: MAX_JOBS_UNDONE,
  // The agent counts, and says why it gives a job up; the server would only go silent.
  max_deliver: -1,
});

/** Where the jobs of a host may be: a fleet with a prefix of its own may have its streams from before names had it. */
export const jobPlaces = (prefix: string, host: string): readonly JobPlace[] => [
  { stream: jobStreamOf(prefix), consumer: jobConsumer(host, prefix) },
  ...(prefix === DEFAULT_PREFIX ? [] : [{ stream: JOB_STREAM, consumer: jobConsumer(host) }]),
];

/** Finds the event stream, or makes it. Throws NatsError, or BusProblemError where it is missing and cannot be made. */
export function ensureEventStream(manager: JetStreamManager, fleet: Fleet): Promise<Ensured> {
  const { prefix, host } = fleet;
  const needed = subjects(prefix).events(host === undefined ? {} : { host });
  return ensureStream(manager, {
    wanted: eventStream(fleet),
    compared: comparedOf(eventStream(fleet), EVENT_SETTINGS, fleet),
    earlier: EVENT_STREAM,
    flawOf: (found) => eventStreamFlaw(found, needed),
    needed,
  });
}

/** The same for the stream of jobs. */
export function ensureJobStream(manager: JetStreamManager, fleet: Fleet): Promise<Ensured> {
  const { prefix, host } = fleet;
  const needed = host === undefined ? subjects(prefix).allJobs() : subjects(prefix).jobs(host);
  return ensureStream(manager, {
    wanted: jobStream(fleet),
    compared: comparedOf(jobStream(fleet), JOB_SETTINGS, fleet),
    earlier: JOB_STREAM,
    flawOf: (found) => jobStreamFlaw(found, needed),
    needed,
  });
}

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
 * Both streams, and the consumers of these hosts. A stream that is there is changed in what the fleet's settings give, where
 * JetStream allows it. Throws as the above.
 */
export async function ensureAll(
  manager: JetStreamManager,
  fleet: Omit<Fleet, 'host'>,
  hosts: readonly string[],
): Promise<Ensured[]> {
  const both: [() => Promise<Ensured>, Partial<StreamConfig>][] = [
    [
      () => ensureEventStream(manager, fleet),
      comparedOf(eventStream(fleet), EVENT_SETTINGS, fleet),
    ],
    [() => ensureJobStream(manager, fleet), comparedOf(jobStream(fleet), JOB_SETTINGS, fleet)],
  ];
  const ensured: Ensured[] = [];
  for (const [ensure, wanted] of both) {
    const found = await ensure();
    const changes = await changed(manager, found, wanted);
    if (changes === undefined) ensured.push(found);
    else if (typeof changes === 'string') {
      ensured.push({ ...found, differences: [...found.differences, changes] });
    } else {
      const after = await ensure();
      ensured.push(after.outcome === 'there' ? { ...after, outcome: 'updated' } : after);
    }
  }
  const [, { name: stream } = { name: '' }] = ensured;
  const { prefix } = fleet;
  for (const host of hosts) ensured.push(await ensureJobConsumer(manager, { prefix, host, stream }));
  return ensured;
}

/** What JetStream changes of a stream that is there, and an administrator would. */
const CHANGEABLE = ['num_replicas', 'max_age', 'max_bytes'] as const;

/** True where something was changed; why not, where that failed; undefined where nothing has to be. */
async function changed(
  manager: JetStreamManager,
  { name, outcome }: Ensured,
  wanted: Partial<StreamConfig>,
): Promise<true | string | undefined> {
  if (outcome !== 'differs') return undefined;
  const { config } = await manager.streams.info(name);
  const keys = CHANGEABLE.filter(
    (key) => wanted[key] !== undefined && wanted[key] !== config[key],
  );
  if (keys.length === 0) return undefined;
  try {
    await manager.streams.update(
      name,
      Object.fromEntries(keys.map((key) => [key, wanted[key]])),
    );
    return true;
  } catch (error) {
    return `not changed: ${jetStreamReason(error)}`;
  }
}

/**
 * The consumer at this place. Where the streams are in another account than the agents, as in deploy/nats/, JetStream
 * answers nothing about it, and it is used unseen. Throws NatsError where it is not there.
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

/** What the library wants to be told of a consumer; it uses both names and the lack of a subject to deliver to. */
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
  /** What the consumer is still to deliver for the first time. */
  readonly pending: number;
  /** What it has delivered, and waits to hear of. */
  readonly unacknowledged: number;
  readonly delivered: number;
}

/** What the stream has of a host's jobs beside what its consumer makes of them. Throws NatsError. */
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

/** Of what is wanted the part in which a stream that is there should not differ. */
const comparedOf = (
  wanted: Wanted,
  settings: Readonly<Record<string, keyof StreamSettings>>,
  { given = [] }: Fleet,
): Wanted => {
  const isCompared = (key: string): boolean => {
    const setting = settings[key];
    return setting === undefined || given.includes(setting);
  };
  return {
    ...Object.fromEntries(Object.entries(wanted).filter(([key]) => isCompared(key))),
    name: wanted.name,
  };
};

interface StreamNeed {
  readonly wanted: Wanted;
  readonly compared: Wanted;
  /** What it was called before names had the prefix. */
  readonly earlier: string;
  readonly needed: string;
  readonly flawOf: (found: StreamConfig) => string | undefined;
}

/** Makes a stream that is not there; one that is there is not changed. */
async function ensureStream(manager: JetStreamManager, need: StreamNeed): Promise<Ensured> {
  const { wanted, compared, earlier, flawOf, needed } = need;
  const { name } = wanted;
  const found = await configOf(manager, name);
  if (found !== undefined) return comparison(name, compared, found, flawOf(found));
  if (earlier !== name) {
    const before = await configOf(manager, earlier).catch(() => undefined);
    if (before !== undefined && areCovered(before, needed)) {
      return comparison(earlier, { ...compared, name: earlier }, before, flawOf(before));
    }
  }
  await made('stream-missing', name, () => manager.streams.add(wanted));
  return { name, outcome: 'made', differences: [] };
}

async function configOf(
  manager: JetStreamManager,
  name: string,
): Promise<StreamConfig | undefined> {
  try {
    return (await manager.streams.info(name)).config;
  } catch (error) {
    if (isApiError(error, JETSTREAM.streamNotFound)) return undefined;
    throw error;
  }
}

/** What is missing is made, or told as missing, with what keeps it from being made. */
async function made(
  problem: BusProblemName,
  name: string,
  make: () => Promise<unknown>,
): Promise<void> {
  try {
    await make();
  } catch (cause) {
    const why = cannotBeAsked(cause)
      ? 'this user may not make it: run voltnet setup as one who may'
      : isApiError(cause, JETSTREAM.subjectsOverlap)
        ? 'another stream takes subjects of it: give those up there, or delete that one'
        : jetStreamReason(cause);
    const reason = `${name} is not there, and is not made: ${why}`;
    throw new BusProblemError({ name: problem, subject: name, reason }, { cause });
  }
}

function comparison(name: string, wanted: object, found: object, flaw?: string): Ensured {
  if (flaw !== undefined) return { name, outcome: 'unfit', differences: [flaw] };
  const there = new Map<string, unknown>(Object.entries(found));
  const differences = Object.entries(wanted).flatMap(([key, value]) => {
    const [is, should] = [there.get(key), value].map((one) => JSON.stringify(one));
    return is === should ? [] : [`${key}: ${is ?? 'not set'}, not ${should ?? ''}`];
  });
  return { name, outcome: differences.length === 0 ? 'there' : 'differs', differences };
}
