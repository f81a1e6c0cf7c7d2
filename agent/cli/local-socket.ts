import { join } from 'node:path';
import { fromErrorBody, VoltError } from '#protocol/errors.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { requestSeqpacket } from '#native/unix.ts';
import { isRecord } from './settings.ts';

/** What the agent answered. Whoever disposes of it closes the descriptors that were not taken. */
export interface Reply extends Disposable {
  readonly body: Readonly<Record<string, unknown>>;
  readonly descriptors: readonly Descriptor[];
}

/**
 * One packet to the agent of this host and its answer. Throws VoltError: what the agent answered, or
 * AGENT_UNAVAILABLE where nobody listens or answers in time.
 */
export async function askAgent(options: {
  readonly runtimeDir: string;
  readonly timeoutMs: number;
  readonly request: Readonly<Record<string, unknown>>;
}): Promise<Reply> {
  const { runtimeDir, timeoutMs, request } = options;
  const path = join(runtimeDir, 'agent.sock');
  const payload = Buffer.from(JSON.stringify(request));
  const { bytes, descriptors } = await requestSeqpacket(path, payload, { timeoutMs }).catch(
    (cause: unknown) => {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new VoltError('AGENT_UNAVAILABLE', `no agent: ${reason}`, { cause });
    },
  );
  const reply = replyOf(parse(bytes, path), descriptors);
  const error = fromErrorBody(reply.body);
  if (error === null) return reply;
  reply[Symbol.dispose]();
  throw error;
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
