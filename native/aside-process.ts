import type { Descriptor } from './descriptor.ts';
import { isKernelError } from './errors.ts';
import { NotANamespaceError, openNamespaceFile } from './namespace-file.ts';
import { receivePacket, sendPacket } from './packet.ts';
import { watchReadable } from './poll.ts';

// The other end of aside.ts: does one errand after the other, until the process that started this one is gone. An
// errand may hang; then this process is killed.

const SOCKET = 3;

/** The descriptors that came with `keep`, for the errand that follows. */
const kept: Descriptor[] = [];

watchReadable(SOCKET, () => {
  const packet = receivePacket(SOCKET);
  if (packet === undefined) return;
  if (packet.bytes.length === 0) process.exit(0);
  kept.push(...packet.descriptors);
  const request: unknown = JSON.parse(packet.bytes.toString());
  if (typeof request !== 'object' || request === null || 'keep' in request) return;
  if ('open' in request && typeof request.open === 'string') answerNamespace(request.open);
  else {
    for (const descriptor of kept.splice(0)) descriptor.close();
    answer({});
  }
});

// Ready for the first.
answer({});

function answerNamespace(path: string): void {
  try {
    using descriptor = openNamespaceFile(path, 'however long it takes');
    answer({}, [descriptor.fd]);
  } catch (error) {
    if (error instanceof NotANamespaceError) answer({});
    else if (isKernelError(error)) answer({ errno: error.errno });
    else throw error;
  }
}

function answer(body: Readonly<Record<string, unknown>>, fds: readonly number[] = []): void {
  sendPacket(SOCKET, Buffer.from(JSON.stringify(body)), fds);
}
