import { type JetStreamManager, NatsError } from 'nats';
import { VoltError } from '#protocol/errors.ts';
import { HOST_PATTERN } from '#protocol/names.ts';
import { JOB_STREAM, jobConsumer, subjects } from '#protocol/subjects.ts';

/** Jobs of one host that the stream keeps, since nobody has done them yet. */
export interface WaitingJobs {
  readonly host: string;
  readonly jobs: number;
  /** When the oldest of them was stored; absent where JetStream does not say. */
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
 * The jobs that wait, by host: of all hosts that have some, or of one. `maxAgeSeconds`: so long the stream keeps a job, 0
 * for ever. Throws VoltError: NOT_FOUND without the stream, UNAUTHORIZED where the user may not ask.
 */
export async function listWaitingJobs(
  manager: JetStreamManager,
  prefix: string,
  host?: string,
): Promise<{ readonly hosts: WaitingJobs[]; readonly maxAgeSeconds: number }> {
  const ours = subjects(prefix);
  const filter = host === undefined ? ours.allJobs() : ours.jobs(host);
  const { state, config } = await asked(() =>
    manager.streams.info(JOB_STREAM, { subjects_filter: filter }),
  );
  const counts = new Map<string, number>(host === undefined ? [] : [[host, 0]]);
  for (const [subject, jobs] of Object.entries<number>(state.subjects ?? {})) {
    const [, one = ''] = subject.slice(prefix.length + 1).split('.');
    // Whoever publishes past the protocol can have anything stored.
    const name = HOST_PATTERN.test(one) ? one : undefined;
    if (name !== undefined) counts.set(name, (counts.get(name) ?? 0) + jobs);
  }
  const hosts: WaitingJobs[] = [];
  for (const [name, jobs] of [...counts].toSorted(([a], [b]) => (a < b ? -1 : 1))) {
    const since = jobs === 0 ? undefined : await oldestOf(manager, ours.jobs(name));
    const consumer = await hasConsumer(manager, name);
    hosts.push({ host: name, jobs, ...(since !== undefined && { since }), consumer });
  }
  return { hosts, maxAgeSeconds: config.max_age / 1e9 };
}

/** Takes all jobs of a host out of the stream, undone; answers how many. Throws as `listWaitingJobs`. */
export async function deleteWaitingJobs(
  manager: JetStreamManager,
  prefix: string,
  host: string,
): Promise<number> {
  const filter = subjects(prefix).jobs(host);
  const { purged } = await asked(() => manager.streams.purge(JOB_STREAM, { filter }));
  return purged;
}

async function oldestOf(manager: JetStreamManager, subject: string): Promise<string | undefined> {
  // The API takes it (nats-server 2.9 on); the type of the library leaves it out.
  const first = { seq: 1, next_by_subj: subject };
  try {
    return (await manager.streams.getMessage(JOB_STREAM, first)).time.toISOString();
  } catch {
    // It has just been done, or the user may not look at messages.
    return undefined;
  }
}

async function hasConsumer(manager: JetStreamManager, host: string): Promise<boolean> {
  try {
    await manager.consumers.info(JOB_STREAM, jobConsumer(host));
    return true;
  } catch (error) {
    if (numberOf(error) === CONSUMER_NOT_FOUND) return false;
    throw explained(error);
  }
}

async function asked<T>(ask: () => Promise<T>): Promise<T> {
  try {
    return await ask();
  } catch (error) {
    throw explained(error);
  }
}

function explained(cause: unknown): unknown {
  const number = numberOf(cause);
  const code = cause instanceof NatsError ? cause.code : '';
  if (number === STREAM_NOT_FOUND) {
    const message = `there is no stream ${JOB_STREAM}, so no job waits: an agent or "voltnet setup" makes it`;
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
