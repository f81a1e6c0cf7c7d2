import { join } from 'node:path';
import { fromErrorBody, VoltError } from '#protocol/errors.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { isKernelError } from '#native/errors.ts';
import { connectSeqpacket } from '#native/unix.ts';
import { isRecord } from './settings.ts';

/** What the agent answered. Whoever disposes of it closes the descriptors that were not taken. */
export interface Reply extends Disposable {
  readonly body: Readonly<Record<string, unknown>>;
  readonly descriptors: readonly Descriptor[];
}

/**
 * One packet to the agent of this host and its answer. Throws VoltError: what the agent answered,
 * AGENT_UNAVAILABLE where nobody listens, DEADLINE_EXCEEDED when it does not answer in time.
 */
export async function askAgent(options: {
  readonly runtimeDir: string;
  readonly timeoutMs: number;
  readonly request: Readonly<Record<string, unknown>>;
}): Promise<Reply> {
  const path = join(options.runtimeDir, 'agent.sock');
  using connection = connectTo(path);
  const timeout = AbortSignal.timeout(options.timeoutMs);
  const late = new Promise<never>((_, reject) => {
    timeout.addEventListener('abort', () => {
      reject(new VoltError('DEADLINE_EXCEEDED', `no answer on ${path}`));
    });
  });
  const payload = Buffer.from(JSON.stringify(options.request));
  const { bytes, descriptors } = await Promise.race([connection.request(payload), late]);
  const reply = replyOf(parse(bytes, path), descriptors);
  const error = fromErrorBody(reply.body);
  if (error === null) return reply;
  reply[Symbol.dispose]();
  throw error;
}

function connectTo(path: string): ReturnType<typeof connectSeqpacket> {
  try {
    return connectSeqpacket(path);
  } catch (cause) {
    if (!isKernelError(cause, 'ENOENT', 'ECONNREFUSED', 'EACCES', 'ENOTDIR')) throw cause;
    const message = `no agent on ${path}: ${cause.code}`;
    throw new VoltError('AGENT_UNAVAILABLE', message, { cause });
  }
}

function parse(bytes: Uint8Array, path: string): Readonly<Record<string, unknown>> {
  try {
    const value: unknown = JSON.parse(Buffer.from(bytes).toString('utf8'));
    if (isRecord(value)) return value;
  } catch {
    // Said below, as for any other answer that is none.
  }
  throw new VoltError('INTERNAL', `${path} answered what is no JSON object`);
}

const replyOf = (
  body: Readonly<Record<string, unknown>>,
  descriptors: readonly Descriptor[],
): Reply => ({
  body,
  descriptors,
  [Symbol.dispose]: () => {
    for (const descriptor of descriptors) descriptor.close();
  },
});
