import { type JetStreamManager, NatsError } from 'nats';
import { VoltError } from '#protocol/errors.ts';
import { HOST_PATTERN } from '#protocol/names.ts';
import { JOB_STREAM, jobStreamOf, subjects } from '#protocol/subjects.ts';
import { consumerIn } from './job-consumer.ts';
import { areCovered } from './stream-flaws.ts';

/** Jobs of one host that the stream keeps because nobody has done them yet. */
export interface WaitingJobs {
  readonly host: string;
  readonly jobs: number;
  /** When the oldest of them was stored; absent if JetStream does not say. */
  readonly since?: string;
  /** Whether an agent of the host, or `voltnet setup`, has ever made a consumer for it. */
  readonly consumer: boolean;
}

/** Of JetStream (nats-server, errors.json). */
const STREAM_NOT_FOUND = 10_059;
const CONSUMER_NOT_FOUND = 10_014;
const NOT_ENABLED: ReadonlySet<number> = new Set([10_039, 10_076]);
const NO_RESPONDERS = '503';

/**
 * The waiting jobs by host: of one host, or of all hosts that have some. `maxAgeSeconds`: how long the stream keeps a
 * job, 0 for ever. Throws VoltError: NOT_FOUND without the stream, UNAUTHORIZED if the user may not ask.
 */
export async function listWaitingJobs(
  manager: JetStreamManager,
  prefix: string,
  host?: string,
): Promise<{ readonly hosts: WaitingJobs[]; readonly maxAgeSeconds: number }> {
  const ours = subjects(prefix);
  const filter = host === undefined ? ours.allJobs() : ours.jobs(host);
  const stream = await jobStreamIn(manager, prefix);
  const { state, config } = await asked(stream, () =>
    manager.streams.info(stream, { subjects_filter: filter }),
  );
  const counts = new Map<string, number>(host === undefined ? [] : [[host, 0]]);
  for (const [subject, jobs] of Object.entries<number>(state.subjects ?? {})) {
    const [, one = ''] = subject.slice(prefix.length + 1).split('.');
    // A sender that ignores the protocol can have anything stored.
    const name = HOST_PATTERN.test(one) ? one : undefined;
    if (name !== undefined) counts.set(name, (counts.get(name) ?? 0) + jobs);
  }
  const hosts: WaitingJobs[] = [];
  for (const [name, jobs] of [...counts].toSorted(([a], [b]) => (a < b ? -1 : 1))) {
    const since = jobs === 0 ? undefined : await oldestOf(manager, stream, ours.jobs(name));
    const consumer = await hasConsumer(manager, { prefix, host: name, stream });
    hosts.push({ host: name, jobs, ...(since !== undefined && { since }), consumer });
  }
  return { hosts, maxAgeSeconds: config.max_age / 1e9 };
}

/**
 * Takes all jobs of a host out of the stream without doing them; answers how many. Throws as `listWaitingJobs` does.
 */
export async function deleteWaitingJobs(
  manager: JetStreamManager,
  prefix: string,
  host: string,
): Promise<number> {
  const filter = subjects(prefix).jobs(host);
  const stream = await jobStreamIn(manager, prefix);
  const { purged } = await asked(stream, () => manager.streams.purge(stream, { filter }));
  return purged;
}

/** The fleet's stream of jobs, which may be from a time before its name had the prefix. */
async function jobStreamIn(manager: JetStreamManager, prefix: string): Promise<string> {
  const name = jobStreamOf(prefix);
  if (name === JOB_STREAM) return name;
  try {
    await manager.streams.info(name);
    return name;
  } catch (error) {
    if (numberOf(error) !== STREAM_NOT_FOUND) throw explained(error, name);
  }
  const before = await manager.streams.info(JOB_STREAM).catch(() => undefined);
  const isOurs = before !== undefined && areCovered(before.config, subjects(prefix).allJobs());
  return isOurs ? JOB_STREAM : name;
}

async function oldestOf(
  manager: JetStreamManager,
  stream: string,
  subject: string,
): Promise<string | undefined> {
  // The API accepts this (nats-server 2.9 on); the library's type leaves it out.
  const first = { seq: 1, next_by_subj: subject };
  try {
    return (await manager.streams.getMessage(stream, first)).time.toISOString();
  } catch {
    // The job has just been done, or the user may not look at messages.
    return undefined;
  }
}

async function hasConsumer(
  manager: JetStreamManager,
  { prefix, host, stream }: { prefix: string; host: string; stream: string },
): Promise<boolean> {
  try {
    await manager.consumers.info(stream, consumerIn(stream, { prefix, host }));
    return true;
  } catch (error) {
    if (numberOf(error) === CONSUMER_NOT_FOUND) return false;
    throw explained(error, stream);
  }
}

async function asked<T>(stream: string, ask: () => Promise<T>): Promise<T> {
  try {
    return await ask();
  } catch (error) {
    throw explained(error, stream);
  }
}

function explained(cause: unknown, stream: string): unknown {
  const number = numberOf(cause);
  const code = cause instanceof NatsError ? cause.code : '';
  if (number === STREAM_NOT_FOUND) {
    const message = `there is no stream ${stream}, so no job waits: an agent or "voltnet setup" makes it`;
    return new VoltError('NOT_FOUND', message, { cause });
  }
  if (code === NO_RESPONDERS || NOT_ENABLED.has(number)) {
    const message = 'JetStream is off, or this account of NATS has none';
    return new VoltError('AGENT_UNAVAILABLE', message, { cause });
  }
  if (code !== 'PERMISSIONS_VIOLATION') return cause;
  const message = `this user of NATS may not ask JetStream: ${String(cause)}`;
  return new VoltError('UNAUTHORIZED', message, { cause });
}

const numberOf = (error: unknown): number =>
  error instanceof NatsError ? (error.api_error?.err_code ?? 0) : 0;
