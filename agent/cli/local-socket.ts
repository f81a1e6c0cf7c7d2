import { fromErrorBody, VoltError } from '#protocol/errors.ts';
import type { LocalAnswers, LocalPacket } from '#protocol/local-socket.ts';
import { IS_LOCAL_ANSWER, type IsAnswer } from '#protocol/outlines.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { isKernelError } from '#native/errors.ts';
import { MAX_PACKET_BYTES } from '#native/packet.ts';
import { requestSeqpacket } from '#native/unix.ts';
import { isRecord, socketIn } from './settings.ts';

/** An answer of the agent. Disposing of it closes the descriptors that were not taken. */
export interface Reply<Body = Readonly<Record<string, unknown>>> extends Disposable {
  readonly body: Body;
  readonly descriptors: readonly Descriptor[];
}

interface Asking<Packet extends LocalPacket> {
  readonly runtimeDir: string;
  readonly timeoutMs: number;
  readonly request: Packet;
}

/**
 * Sends one packet to the agent of this host, and returns its answer. Throws VoltError: the agent's own;
 * AGENT_UNAVAILABLE if nobody listens, or if a packet that asks for nothing has no answer in time; DEADLINE_EXCEEDED
 * if a request was sent and has no answer in time, since nobody knows then whether it was done; INTERNAL for an answer
 * that lacks what the protocol promises.
 */
export async function askAgent<Op extends keyof LocalAnswers>(
  options: Asking<LocalPacket & { readonly op: Op }>,
): Promise<Reply<LocalAnswers[Op]>> {
  const { op }: { readonly op: Op } = options.request;
  const isAnswer: IsAnswer<LocalAnswers[Op]> = IS_LOCAL_ANSWER[op];
  const reply = await sendToAgent(options);
  const { body } = reply;
  if (isAnswer(body)) return { ...reply, body };
  reply[Symbol.dispose]();
  throw new VoltError('INTERNAL', `the answer to ${op} lacks what the protocol promises`);
}

/** The same for any packet. Whoever asks looks at the answer himself. */
export async function sendToAgent(options: Asking<LocalPacket>): Promise<Reply> {
  const { runtimeDir, timeoutMs, request } = options;
  const path = socketIn(runtimeDir);
  const payload = Buffer.from(JSON.stringify(request));
  if (payload.length > MAX_PACKET_BYTES) {
    const limit = MAX_PACKET_BYTES;
    throw new VoltError('TOO_LARGE', `${payload.length} bytes are more than ${limit}`);
  }
  const { bytes, descriptors } = await requestSeqpacket(path, payload, { timeoutMs }).catch(
    (cause: unknown) => {
      if (request.op === 'request' && isKernelError(cause, 'ETIMEDOUT')) {
        throw new VoltError('DEADLINE_EXCEEDED', `${path}: no answer within ${timeoutMs} ms`);
      }
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
    // An answer that is no object is reported below.
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
