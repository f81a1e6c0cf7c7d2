import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { decodeAnswer } from '#protocol/envelope.ts';
import { requestSeqpacket } from '#native/unix.ts';
import { until } from './agent.ts';
import { OddMessages } from './odd-messages.ts';
import { RawNats } from './raw-nats.ts';
import type { Snapshot, Stack } from './stack.ts';

const IN_FLIGHT = 256;
const PACKETS_IN_FLIGHT = 8;
const EVERY_PACKET = 25;
const ANSWER_MS = 60_000;
/** A job that is refused for now is tried again, later each time. */
const EVENT_MS = 240_000;

export interface FuzzResult {
  readonly sent: number;
  readonly packets: number;
  readonly jobs: number;
  /** Of the agent, in MiB: after each tenth of the messages. */
  readonly residentMiB: readonly number[];
}

/**
 * Sends so many odd messages to an agent, on every subject that it serves, as jobs and over its local socket. Throws
 * where a request stays without an answer, a job without its event, or the agent ends.
 */
export async function fuzz(
  stack: Stack,
  { messages, seed }: { messages: number; seed: number },
): Promise<FuzzResult> {
  const { agent } = stack;
  const { pid } = agent;
  const odd = new OddMessages(seed);
  const waiting = new Map<string, string>();
  const untold = new Set<string>();
  using stranger = await RawNats.open(stack.nats.url);
  using listener = await RawNats.open(stack.nats.url);
  listener.subscribe('volt.net.v1.event.*.*.*', ({ subject, headers, data }) => {
    // One that the messages sent there themselves is no event.
    if (!headers?.includes(`ce-source: /volt/network/${subject.split('.')[4] ?? ''}`)) return;
    const body = Object(decodeAnswer(data)) as Readonly<Record<string, unknown>>;
    untold.delete(String(body['requestId']));
  });
  const jobOf = new Map<string, string>();
  stranger.subscribe('_INBOX.odd.*', ({ subject, data }) => {
    waiting.delete(subject);
    const job = jobOf.get(subject);
    jobOf.delete(subject);
    // JetStream has refused it: too many headers, or a repeat.
    if (job !== undefined && /"error"|"duplicate"/.test(data.toString())) untold.delete(job);
  });
  await Promise.all([stranger.flush(), listener.flush()]);
  const answered = (atMost: number): Promise<void> =>
    until('requests are answered', () => waiting.size <= atMost, ANSWER_MS).catch(
      (cause: unknown) => {
        throw new Error(`unanswered: ${[...waiting.values()].slice(0, 5).join('; ')}`, { cause });
      },
    );
  const residentMiB: number[] = [];
  let packets = 0;
  let jobs = 0;
  const socket = new Set<Promise<void>>();
  for (let sent = 0; sent < messages; sent += 1) {
    const message = odd.next();
    const { reply, jobRequestId } = message;
    const subject =
      reply === 'inbox' ? `_INBOX.odd.${sent}` : reply === 'none' ? '' : reply.subject;
    if (reply === 'inbox') waiting.set(subject, `${sent} on ${message.subject}`);
    if (jobRequestId !== undefined && reply === 'inbox') {
      jobs += 1;
      untold.add(jobRequestId);
      jobOf.set(subject, jobRequestId);
    }
    stranger.publish({ ...message, reply: subject });
    if (sent % EVERY_PACKET === 0) {
      const exchange = converse(agent.socketPath, odd.packet()).finally(() =>
        socket.delete(exchange),
      );
      socket.add(exchange);
      packets += 1;
      if (socket.size >= PACKETS_IN_FLIGHT) await Promise.race(socket);
    }
    if (waiting.size >= IN_FLIGHT) await answered(IN_FLIGHT / 2);
    if ((sent + 1) % Math.ceil(messages / 10) === 0) residentMiB.push(residentOf(pid));
  }
  await Promise.all(socket);
  await answered(0);
  await until('every job has its event', () => untold.size === 0, EVENT_MS).catch(
    (cause: unknown) => {
      throw new Error(`without an event: ${[...untold].slice(0, 5).join(', ')}`, { cause });
    },
  );
  if ((await agent.health())['pid'] !== pid) throw new Error('the agent has ended');
  return { sent: messages, packets, jobs, residentMiB };
}

/** Detaches whatever a fuzz has attached. Throws where the host then has more than it had `before`. */
export async function leavesNothing(stack: Stack, before: Snapshot): Promise<void> {
  const { client, agent, host } = stack;
  // Some have got an id that was odd, and good enough.
  for await (const { id } of client.listAll(host)) await client.detach(host, { id });
  await until('nothing is under way', async () => {
    const { unfinished, eventsPending } = await agent.health();
    return unfinished === 0 && eventsPending === 0;
  });
  const { devices, records, attachments } = await stack.snapshot();
  assert.equal(attachments, 0);
  assert.deepEqual(records, before.records);
  // The bridges of networks stay.
  assert.deepEqual(
    devices.filter((name) => /^(tap|veth|vdel|ifb)/.test(name)),
    [],
  );
  assert.deepEqual((await agent.health())['unexpectedErrors'], { count: 0 });
}

/** One packet, and whatever answer; that the connection is closed is one, too. */
async function converse(path: string, packet: Uint8Array): Promise<void> {
  const { descriptors } = await requestSeqpacket(path, packet).catch((error: Error) => {
    if (/ECONNRESET|EAGAIN|EMSGSIZE/.test(error.message)) return { descriptors: [] };
    throw error;
  });
  for (const descriptor of descriptors) descriptor.close();
}

function residentOf(pid: number): number {
  const [, pages = '0'] = readFileSync(`/proc/${pid}/statm`, 'utf8').split(' ');
  return Math.round((Number(pages) * 4_096) / 1024 ** 2);
}
