import type { Descriptor } from './descriptor.ts';
import { isKernelError, KernelError } from './errors.ts';
import * as libc from './libc.ts';
import type { Namespace } from './namespace.ts';
import {
  openNetlink,
  retryInterrupted,
  setOption,
  SOL_NETLINK,
  SOL_SOCKET,
} from './netlink-descriptor.ts';
import { eachMessage, type Framed } from './netlink-message.ts';
import { watchReadable } from './poll.ts';
import { CodecError } from './writer.ts';

const SO_RCVBUF = 8;
const SO_RCVBUFFORCE = 33;
const NETLINK_ADD_MEMBERSHIP = 1;
const MSG_DONTWAIT = 0x40;
const EAGAIN = 11;
const NOTHING = -1;
const EVENT_BYTES = 64 * 1024;
const EVENT_BUFFER_BYTES = 4 * 1024 * 1024;
/** Events that are taken in one turn of the event loop: a flood must not keep everything else waiting. */
const MAX_PER_WAKEUP = 256;

/** Receives the changes of the kernel's tables. */
export interface EventHandlers {
  readonly onMessage: (message: Framed) => void;
  /** Events were lost (ENOBUFS), or could not be read (ENOMEM, CodecError): the tables have to be read again. */
  readonly onOverrun: () => void;
}

/**
 * Subscribes to multicast groups (RTNLGRP_…; of another `protocol`, its own) of the caller's or a given namespace, until disposed. Keeps the
 * process alive. The socket buffer passes net.core.rmem_max where the process may (CAP_NET_ADMIN).
 */
export function subscribe(
  groups: readonly number[],
  handlers: EventHandlers,
  {
    namespace,
    bufferBytes = EVENT_BUFFER_BYTES,
    protocol,
  }: { namespace?: Namespace; bufferBytes?: number; protocol?: number } = {},
): Disposable {
  const join = (fd: number): void => {
    growBuffer(fd, bufferBytes);
    for (const group of groups) setOption(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group);
  };
  const descriptor = openNetlink(namespace, join, protocol);
  const buffer = Buffer.alloc(EVENT_BYTES);
  const watch = watchReadable(descriptor.fd, () => {
    for (let taken = 0; taken < MAX_PER_WAKEUP && !descriptor.closed; taken += 1) {
      if (!takeDatagram(descriptor.fd, buffer, handlers)) return;
    }
  });
  return {
    [Symbol.dispose]: () => {
      watch[Symbol.dispose]();
      descriptor.close();
    },
  };
}

/**
 * Tells whether anything has changed in multicast groups (as for `subscribe`), for whoever keeps a copy of what is there. It is
 * asked, one system call while nothing has changed, and does without the event loop: a change that was made before the
 * question is in the answer.
 */
export class Changes implements Disposable {
  readonly #descriptor: Descriptor;
  readonly #buffer = Buffer.alloc(EVENT_BYTES);

  constructor(
    groups: readonly number[],
    { namespace }: { namespace?: Namespace | undefined } = {},
  ) {
    this.#descriptor = openNetlink(namespace, (fd) => {
      for (const group of groups) setOption(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group);
    });
  }

  /** Whether there were changes since this was asked last. True, too, where they were lost. */
  any(): boolean {
    let changed = false;
    const note = (): void => {
      changed = true;
    };
    const handlers = { onMessage: note, onOverrun: note };
    while (takeDatagram(this.#descriptor.fd, this.#buffer, handlers));
    return changed;
  }

  [Symbol.dispose](): void {
    this.#descriptor.close();
  }
}

/** False when there is nothing to read for now. */
function takeDatagram(fd: number, buffer: Buffer, handlers: EventHandlers): boolean {
  try {
    const length = retryInterrupted(() => receive(fd, buffer));
    if (length === NOTHING) return false;
    eachMessage(buffer.subarray(0, length), handlers.onMessage);
  } catch (error) {
    const lost = isKernelError(error, 'ENOBUFS', 'ENOMEM') || error instanceof CodecError;
    if (!lost) throw error;
    handlers.onOverrun();
    // Events for which there was no memory are still there, and come when there is.
    if (isKernelError(error, 'ENOMEM')) return false;
  }
  return true;
}

/** The end of what there is to read comes with every wake-up, and is no error. */
function receive(fd: number, buffer: Buffer): number {
  const length = libc.recv(fd, buffer, buffer.length, MSG_DONTWAIT);
  if (length >= 0) return length;
  const errno = libc.errno();
  if (errno === EAGAIN) return NOTHING;
  throw new KernelError({ operation: 'recv', subject: 'netlink events', errno });
}

function growBuffer(fd: number, bytes: number): void {
  try {
    setOption(fd, SOL_SOCKET, SO_RCVBUFFORCE, bytes);
  } catch (error) {
    if (!isKernelError(error, 'EPERM')) throw error;
    setOption(fd, SOL_SOCKET, SO_RCVBUF, bytes);
  }
}
