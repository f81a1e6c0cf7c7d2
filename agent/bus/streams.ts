import {
  DiscardPolicy,
  ErrorCode,
  type JetStreamManager,
  nanos,
  NatsError,
  RetentionPolicy,
  StorageType,
  type StreamConfig,
  type StreamInfo,
} from 'nats';
import {
  EVENT_STREAM,
  eventStreamOf,
  JOB_STREAM,
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
import type { StreamSettings } from './stream-settings.ts';
import type { WhyNotPublished } from '../storage/pending-event.ts';
import { areCovered, eventStreamFlaw, jobStreamFlaw } from './stream-flaws.ts';

// An event is published again if its acknowledgement was lost: usually within one reconnect.
const DUPLICATE_WINDOW_MS = 10 * 60_000;
export const JOBS_PER_SUBJECT = 100_000;
/** Errors of the library about the message, and not about the connection. */
const OF_THE_MESSAGE: ReadonlySet<string> = new Set([
  ErrorCode.MaxPayloadExceeded,
  ErrorCode.BadHeader,
  ErrorCode.BadPayload,
  ErrorCode.BadSubject,
  ErrorCode.InvalidPayload,
]);
/**
 * Answers of JetStream: the message, or its headers, are larger than the stream takes (nats-server, errors.json). The
 * code of the error is no help: 400 also stands for an account that is full (10002), or a stream that is sealed
 * (10109).
 */
const TOO_LARGE_FOR_STREAM: ReadonlySet<number> = new Set([10_054, 10_097]);

/**
 * How a stream or consumer was found: `made` now; `updated` now; `there` as it should be; it `differs`, and is left
 * as its maker wants it; `unfit` to serve; or not there, and JetStream has `refused` to make it. `voltnet setup` shows this.
 */
export interface Ensured {
  readonly name: string;
  readonly outcome: 'made' | 'updated' | 'there' | 'differs' | 'unfit' | 'refused';
  /** `max_age: 3600000000000, not 43200000000000`; of an `unfit` or `refused` one the reason. */
  readonly differences: readonly string[];
}

/** Whose streams, and how they are made. */
export interface Fleet {
  readonly prefix: string;
  readonly settings: StreamSettings;
  /** The host whose subjects the streams must take at least; without it, those of all hosts. */
  readonly host?: string;
  /** The settings that an existing stream is changed to. Everything else stays as its maker decided. */
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

type Wanted = Partial<StreamConfig> & { readonly name: string };

const eventStream = ({ prefix, settings }: Fleet): Wanted => ({
  name: eventStreamOf(prefix),
  subjects: [subjects(prefix).events()],
  retention: RetentionPolicy.Limits,
  storage: storageOf(settings),
  num_replicas: settings.replicas,
  max_age: nanos(settings.eventAgeSeconds * 1_000),
  max_bytes: settings.eventBytes,
  duplicate_window: windowWithin(nanos(settings.eventAgeSeconds * 1_000)),
});

/** A full queue refuses new jobs: their senders learn of it, and jobs that were taken stay. */
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
  duplicate_window: windowWithin(nanos(settings.jobAgeSeconds * 1_000)),
});

const windowWithin = (ageNanos: number): number => Math.min(nanos(DUPLICATE_WINDOW_MS), ageNanos);

const storageOf = ({ storage }: StreamSettings): StorageType =>
  storage === 'file' ? StorageType.File : StorageType.Memory;

/** Finds the event stream, or makes it. Throws NatsError, or BusProblemError if it is missing and cannot be made. */
export function ensureEventStream(manager: JetStreamManager, fleet: Fleet): Promise<Ensured> {
  const { prefix, host } = fleet;
  const needed = subjects(prefix).events(host === undefined ? {} : { host });
  return ensureStream(manager, {
    ...comparedOf(eventStream(fleet), EVENT_SETTINGS, fleet),
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
    ...comparedOf(jobStream(fleet), JOB_SETTINGS, fleet),
    earlier: JOB_STREAM,
    flawOf: (found) => jobStreamFlaw(found, needed),
    needed,
  });
}

/** By the error with which the publication of an event ended. */
export function whyNotStored(error: unknown): WhyNotPublished {
  if (!(error instanceof NatsError)) return 'later';
  if (OF_THE_MESSAGE.has(error.code)) return 'never';
  return TOO_LARGE_FOR_STREAM.has(error.api_error?.err_code ?? 0) ? 'never' : 'later';
}

/** The parts of an existing stream that JetStream can change, and an administrator would. */
const CHANGEABLE = ['num_replicas', 'max_age', 'max_bytes'] as const;

/**
 * The part of the wanted configuration in which an existing stream should not differ, and what of it may be changed.
 */
function comparedOf(
  wanted: Wanted,
  settings: Readonly<Record<string, keyof StreamSettings>>,
  { given = [] }: Fleet,
): Pick<StreamNeed, 'wanted' | 'compared' | 'changeable'> {
  const isGiven = (key: string): boolean => given.some((one) => one === settings[key]);
  const kept = Object.entries(wanted).filter(([key]) => !(key in settings) || isGiven(key));
  const compared = { ...Object.fromEntries(kept), name: wanted.name };
  return { wanted, compared, changeable: new Set(CHANGEABLE.filter(isGiven)) };
}

interface StreamNeed {
  readonly wanted: Wanted;
  readonly compared: Wanted;
  readonly changeable: ReadonlySet<string>;
  /** Its name in releases in which names had no prefix. */
  readonly earlier: string;
  readonly needed: string;
  readonly flawOf: (found: StreamConfig) => string | undefined;
}

/** Makes a missing stream. An existing one is changed in `changeable`, where JetStream allows it. */
async function ensureStream(manager: JetStreamManager, need: StreamNeed): Promise<Ensured> {
  const { wanted, earlier, needed } = need;
  const { name } = wanted;
  const found = await infoOf(manager, name);
  if (found !== undefined) return adjusted(manager, need, found);
  if (earlier !== name) {
    const before = await infoOf(manager, earlier).catch(() => undefined);
    if (before !== undefined && areCovered(before.config, needed)) {
      return adjusted(manager, need, before);
    }
  }
  await made('stream-missing', name, () => manager.streams.add(wanted));
  return { name, outcome: 'made', differences: [] };
}

async function adjusted(
  manager: JetStreamManager,
  { compared, flawOf, changeable }: StreamNeed,
  found: StreamInfo,
): Promise<Ensured> {
  const { name, duplicate_window: window } = found.config;
  const compare = (info: StreamInfo): Ensured =>
    comparison(name, { ...compared, name }, inTruth(info), flawOf(info.config));
  const before = compare(found);
  const there = inTruth(found);
  const keys = CHANGEABLE.filter((key) => changeable.has(key) && compared[key] !== there[key]);
  if (before.outcome !== 'differs' || keys.length === 0) return before;
  // Such a server takes the number, and keeps one.
  const inVain = isAlone(found) && keys.includes('num_replicas');
  const why = inVain ? [`num_replicas is not changed: ${LONE}`] : [];
  const changed = keys.filter((key) => !inVain || key !== 'num_replicas');
  const told = ({ differences, ...rest }: Ensured, reasons: readonly string[]): Ensured => ({
    ...rest,
    differences: [...differences, ...reasons],
  });
  if (changed.length === 0) return told(before, why);
  const changes = Object.fromEntries(changed.map((key) => [key, compared[key]]));
  const { max_age: age = 0, duplicate_window: wantedWindow } = compared;
  // It goes with the age, as whoever makes a stream here has it; and JetStream takes none that is longer than the age.
  const follows = window > age || window === windowWithin(found.config.max_age);
  const isMoved = changed.includes('max_age') && follows && wantedWindow !== undefined;
  try {
    const after = await manager.streams.update(name, {
      ...changes,
      ...(isMoved && { duplicate_window: wantedWindow }),
    });
    const outcome = compare(after);
    return outcome.outcome === 'there' ? { ...outcome, outcome: 'updated' } : told(outcome, why);
  } catch (error) {
    return told(before, [...why, `not changed: ${jetStreamReason(error)}`]);
  }
}

const LONE = 'a server that is alone keeps one replica';

/** Only servers of a cluster, which has a name, keep replicas of each other's streams. */
const isAlone = ({ cluster }: StreamInfo): boolean => (cluster?.name ?? '') === '';

/** The configuration with what the server does, where that is something else. */
const inTruth = (info: StreamInfo): StreamConfig =>
  isAlone(info) ? { ...info.config, num_replicas: 1 } : info.config;

async function infoOf(manager: JetStreamManager, name: string): Promise<StreamInfo | undefined> {
  try {
    return await manager.streams.info(name);
  } catch (error) {
    if (isApiError(error, JETSTREAM.streamNotFound)) return undefined;
    throw error;
  }
}

/** Makes what is missing. Throws BusProblemError with the reason why it cannot be made. */
export async function made(
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

export function comparison(name: string, wanted: object, found: object, flaw?: string): Ensured {
  if (flaw !== undefined) return { name, outcome: 'unfit', differences: [flaw] };
  const there = new Map<string, unknown>(Object.entries(found));
  const differences = Object.entries(wanted).flatMap(([key, value]) => {
    const [is, should] = [there.get(key), value].map((one) => JSON.stringify(one));
    return is === should ? [] : [`${key}: ${is ?? 'not set'}, not ${should ?? ''}`];
  });
  return { name, outcome: differences.length === 0 ? 'there' : 'differs', differences };
}
