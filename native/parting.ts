import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { runAside } from './aside.ts';
import type { Descriptor } from './descriptor.ts';
import { shutdown } from './libc.ts';
import { MAX_DESCRIPTORS } from './packet.ts';

// Closes unix sockets whose peers may have sent descriptors that nobody took. These are closed with the socket, by
// whoever closes it, and some files make him wait: a TCP socket with SO_LINGER for as long as its sender chose.

const SHUT_RDWR = 2;
const CLOSED_WITHIN_MS = 1_000;
const PAUSE_MS = 500;

const left: { readonly socket: Descriptor; readonly gone: () => void }[] = [];
let closing: Promise<void> | undefined;

/**
 * Closes a socket of which the caller is the only owner, without waiting for a file that lies in it. undefined: it is
 * closed. A promise: another process closes it, and the promise resolves then.
 */
export function part(socket: Descriptor): Promise<void> | undefined {
  // From here on nobody puts anything into it.
  shutdown(socket.fd, SHUT_RDWR);
  if (descriptorsIn(socket) === 0) {
    socket.close();
    return undefined;
  }
  const { promise, resolve } = Promise.withResolvers<undefined>();
  left.push({ socket, gone: () => resolve(undefined) });
  closing ??= closeLeft().finally(() => {
    closing = undefined;
  });
  return promise;
}

/** How many descriptors lie in its packets; undefined on a kernel that does not say (before 5.8). */
function descriptorsIn({ fd }: Descriptor): number | undefined {
  const [, count] =
    /^scm_fds:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8')) ?? [];
  return count === undefined ? undefined : Number(count);
}

/** One batch after the other: at most one process is busy with this, however many sockets there are. */
async function closeLeft(): Promise<void> {
  while (left.length > 0) {
    const batch = left.slice(0, MAX_DESCRIPTORS);
    const given = batch.map(({ socket }) => socket);
    const errand = { request: { close: true }, given, timeoutMs: CLOSED_WITHIN_MS, key: 'close' };
    // A process that is killed has closed its files, too.
    const failed = await runAside(errand).then(
      () => false,
      () => true,
    );
    const gone = batch.filter(({ socket }) => socket.closed);
    left.splice(0, batch.length, ...batch.filter((one) => !gone.includes(one)));
    for (const one of gone) one.gone();
    if (failed) await sleep(PAUSE_MS, undefined, { ref: false });
  }
}
