import { VoltError } from '#protocol/errors.ts';
import { replaceProcess } from '#native/exec.ts';
import { isKernelError } from '#native/errors.ts';
import { askAgent } from './local-socket.ts';
import { type ClaimValues, filledIn } from './placeholders.ts';
import { isRecord } from './settings.ts';
import { ExecError, UsageError } from './errors.ts';

export interface ExecOptions {
  readonly runtimeDir: string;
  readonly timeoutMs: number;
  readonly id: string;
  readonly generation?: number;
  /** The command and its arguments, with placeholders. */
  readonly words: readonly string[];
}

/**
 * Claims the attachment's descriptors, and replaces this process by the command. Only a failure returns, by throwing.
 */
export async function execClaimed(options: ExecOptions): Promise<never> {
  const { runtimeDir, timeoutMs, id, generation, words } = options;
  const request = { op: 'claim', id, ...(generation !== undefined && { generation }) } as const;
  using reply = await askAgent({ runtimeDir, timeoutMs, request });
  const claim = claimOf(
    reply.body,
    reply.descriptors.map(({ fd }) => fd),
  );
  const [file, ...args] = words.map((word) => filledIn(word, claim));
  if (file === undefined) throw new UsageError('exec: no command');
  try {
    return replaceProcess({ file, args, keep: claim.fds });
  } catch (cause) {
    if (isKernelError(cause)) throw new ExecError(file, cause);
    throw cause;
  }
}

function claimOf(body: Readonly<Record<string, unknown>>, fds: readonly number[]): ClaimValues {
  const attachment = body['attachment'];
  const device = isRecord(attachment) ? attachment['device'] : undefined;
  if (isRecord(attachment) && isRecord(device)) {
    const { mac } = attachment;
    const { mtu, name } = device;
    if (typeof mac === 'string' && typeof mtu === 'number' && typeof name === 'string') {
      return { fds, mac, mtu, ifname: name };
    }
  }
  throw new VoltError('INTERNAL', 'the agent answered a claim without its attachment');
}
