import { promisify } from 'node:util';
import { readAttributes, Writer } from './codec.ts';
import { Descriptor } from './descriptor.ts';
import { checked, isKernelError, KernelError } from './errors.ts';
import * as libc from './libc.ts';
import type { Namespace } from './namespace.ts';
import { watchReadable } from './poll.ts';
import {
  EXTENDED_ACK,
  NLM_F_ACK,
  NLM_F_DUMP,
  NLM_F_DUMP_INTR,
  NLM_F_REQUEST,
  NLMSG_DONE,
  NLMSG_ERROR,
} from './rtnetlink.ts';
import { traced } from './trace.ts';

const AF_NETLINK = 16;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const NETLINK_ROUTE = 0;
const SOL_SOCKET = 1;
const SO_RCVBUF = 8;
const SO_RCVTIMEO = 20;
const SOL_NETLINK = 270;
const NETLINK_ADD_MEMBERSHIP = 1;
const NETLINK_CAP_ACK = 10;
const NETLINK_EXT_ACK = 11;
const NETLINK_GET_STRICT_CHK = 12;
const MSG_DONTWAIT = 0x40;
const MSG_TRUNC = 0x20;
const NLM_F_ACK_TLVS = 0x200;
const NLM_F_CAPPED = 0x100;

const HEADER_BYTES = 16;
const EINTR = 4;
const EIO = 5;
const ENOBUFS = 105;
/** The kernel fills dumps up to 32 KiB a message where the reader offers that much. */
const RECEIVE_BYTES = 64 * 1024;
const EVENT_BUFFER_BYTES = 4 * 1024 * 1024;
/** The kernel answers within the call that sends; this bound only keeps a fault from stopping the process. */
const ANSWER_TIMEOUT_SECONDS = 10n;
const DUMP_TRIES = 10;

/** One message to the kernel. */
export interface Request {
  /** RTM_… number. */
  readonly type: number;
  /** `RTM_NEWLINK`: for errors and traces. */
  readonly operation: string;
  /** What it is done to: `tap-web`, `10.42.0.5/24`. */
  readonly subject: string;
  /** NLM_F_CREATE, NLM_F_EXCL and the like; REQUEST and ACK are set for all. */
  readonly flags?: number;
  /** Writes header and attributes of the message's family. */
  readonly write: (writer: Writer) => void;
}

/** One message from the kernel. `body` is valid until the next call on the socket. */
export interface Received {
  readonly type: number;
  readonly body: Buffer;
}

/**
 * A NETLINK_ROUTE socket of one network namespace, with strict checking and extended acknowledgements.
 * Requests are synchronous: the kernel does them within `send` and the answer lies ready, so they cost some
 * tens of microseconds and an attach is one undisturbed stretch. Errors are KernelError with the kernel's
 * own text.
 */
export class NetlinkSocket implements Disposable {
  readonly #descriptor: Descriptor;
  readonly #writer = new Writer();
  readonly #received = Buffer.alloc(RECEIVE_BYTES);
  #sequence = 0;
  #busy = false;

  private constructor(descriptor: Descriptor) {
    this.#descriptor = descriptor;
  }

  /** Opens a socket in the caller's namespace or in a given one, where it stays. */
  static open({ namespace }: { namespace?: Namespace } = {}): NetlinkSocket {
    const descriptor = openSocket(namespace);
    setOption(descriptor.fd, SOL_NETLINK, NETLINK_CAP_ACK, 1);
    setOption(descriptor.fd, SOL_NETLINK, NETLINK_EXT_ACK, 1);
    setOption(descriptor.fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1);
    const timeout = Buffer.alloc(16);
    timeout.writeBigInt64LE(ANSWER_TIMEOUT_SECONDS, 0);
    checked(
      libc.setsockopt(descriptor.fd, SOL_SOCKET, SO_RCVTIMEO, timeout, timeout.length),
      'setsockopt',
      'SO_RCVTIMEO',
    );
    return new NetlinkSocket(descriptor);
  }

  /** Does one request. What the kernel sends back before its acknowledgement goes to `onMessage`. */
  request(request: Request, onMessage?: (message: Received) => void): void {
    traced(request.operation, request.subject, () => {
      this.#assertIdle();
      const first = this.#compose([request], NLM_F_ACK);
      this.#send(request);
      this.#collect([request], first, onMessage);
    });
  }

  /**
   * Asks for one object; null when the kernel answers with the errno that means there is none, which is no
   * failure, and no failed operation in a trace.
   */
  find<T>(request: Request, absent: string, parse: (message: Received) => T): T | null {
    return traced(request.operation, request.subject, () => {
      this.#assertIdle();
      const first = this.#compose([request], NLM_F_ACK);
      this.#send(request);
      let found: T | null = null;
      try {
        this.#collect([request], first, (message) => {
          found = parse(message);
        });
      } catch (error) {
        if (!isKernelError(error, absent)) throw error;
      }
      return found;
    });
  }

  /**
   * Does several requests in one send. The kernel tries each whatever becomes of those before; the first
   * error is thrown once all are answered.
   */
  batch(requests: readonly Request[]): void {
    const [head] = requests;
    if (head === undefined) return;
    const operation = requests.map((one) => one.operation).join(' ');
    traced(operation, head.subject, () => {
      this.#assertIdle();
      const first = this.#compose(requests, NLM_F_ACK);
      this.#send(head);
      this.#collect(requests, first);
    });
  }

  /**
   * Does one request on koffi's thread pool: for deletions, for which the kernel waits many milliseconds.
   * The socket takes nothing else until the promise settles.
   */
  async requestAsync(request: Request): Promise<void> {
    this.#assertIdle();
    const first = this.#compose([request], NLM_F_ACK);
    const bytes = Buffer.from(this.#writer.bytes);
    this.#busy = true;
    try {
      // The pool thread's errno is out of reach here. A send to the kernel fails for want of memory only.
      const sent = await sendAsync(this.#descriptor.fd, bytes, bytes.length, 0);
      if (sent < 0) throw errorOf(request, ENOBUFS);
    } finally {
      this.#busy = false;
    }
    this.#collect([request], first);
  }

  /**
   * Reads a whole table. A dump that the kernel marks as interrupted (the table changed meanwhile, and
   * entries may be missing) is read again, ten times; then the error is EINTR.
   */
  dump<T>(request: Request, parse: (message: Received) => T): T[] {
    return traced(request.operation, request.subject, () => {
      for (let tries = 0; tries < DUMP_TRIES; tries += 1) {
        this.#assertIdle();
        const sequence = this.#compose([request], NLM_F_DUMP);
        this.#send(request);
        const rows: T[] = [];
        const whole = this.#readDump(request, sequence, (message) => rows.push(parse(message)));
        if (whole) return rows;
      }
      throw new KernelError({
        operation: request.operation,
        subject: request.subject,
        errno: EINTR,
        kernelText: `the table kept changing while it was read ${DUMP_TRIES} times`,
      });
    });
  }

  [Symbol.dispose](): void {
    this.#descriptor.close();
  }

  #assertIdle(): void {
    if (this.#busy)
      throw new Error('netlink socket used while an asynchronous request is under way');
  }

  /** Writes the messages; returns the sequence number of the first. */
  #compose(requests: readonly Request[], flags: number): number {
    const writer = this.#writer;
    writer.reset();
    const first = this.#sequence + 1;
    for (const request of requests) {
      this.#sequence += 1;
      const start = writer.reserve(HEADER_BYTES);
      writer.patchU16(start + 4, request.type);
      writer.patchU16(start + 6, NLM_F_REQUEST | flags | (request.flags ?? 0));
      writer.patchU32(start + 8, this.#sequence);
      request.write(writer);
      writer.patchU32(start, writer.length - start);
    }
    return first;
  }

  #send({ operation, subject }: Request): void {
    const { bytes } = this.#writer;
    retryInterrupted(() =>
      checked(libc.send(this.#descriptor.fd, bytes, bytes.length, 0), operation, subject),
    );
  }

  #receive(request: Request): Buffer {
    const { fd } = this.#descriptor;
    const length = retryInterrupted(() =>
      checked(
        libc.recv(fd, this.#received, RECEIVE_BYTES, MSG_TRUNC),
        request.operation,
        request.subject,
      ),
    );
    if (length > RECEIVE_BYTES) throw errorOf(request, EIO, `an answer of ${length} bytes`);
    return this.#received.subarray(0, length);
  }

  /** Reads until every request has its acknowledgement. */
  #collect(
    requests: readonly Request[],
    first: number,
    onMessage?: (message: Received) => void,
  ): void {
    let open = requests.length;
    let failure: KernelError | undefined;
    const [head] = requests;
    while (open > 0 && head !== undefined) {
      eachMessage(this.#receive(head), ({ type, flags, sequence, body }) => {
        const request = requests[sequence - first];
        if (request === undefined) return; // the rest of something that was given up
        if (type !== NLMSG_ERROR) {
          onMessage?.({ type, body });
          return;
        }
        open -= 1;
        failure ??= acknowledged(request, flags, body);
      });
    }
    if (failure !== undefined) throw failure;
  }

  /** Reads one dump to its end; false when the kernel says that it was interrupted. */
  #readDump(request: Request, expected: number, onMessage: (message: Received) => void): boolean {
    let whole = true;
    let done = false;
    while (!done) {
      eachMessage(this.#receive(request), ({ type, flags, sequence, body }) => {
        if (sequence !== expected) return;
        if ((flags & NLM_F_DUMP_INTR) !== 0) whole = false;
        if (type === NLMSG_DONE || type === NLMSG_ERROR) {
          done = true;
          const failure = acknowledged(request, flags, body);
          if (failure !== undefined) throw failure;
        } else if (whole) {
          onMessage({ type, body });
        }
      });
    }
    return whole;
  }
}

/** Where a change of the kernel's tables is told. */
export interface EventHandlers {
  readonly onMessage: (message: Received) => void;
  /** The kernel dropped events (ENOBUFS): what was known has to be read anew. */
  readonly onOverrun: () => void;
}

/** Subscribes to multicast groups (RTNLGRP_…) of the caller's or a given namespace. */
export function subscribe(
  groups: readonly number[],
  { onMessage, onOverrun }: EventHandlers,
  {
    namespace,
    bufferBytes = EVENT_BUFFER_BYTES,
  }: { namespace?: Namespace; bufferBytes?: number } = {},
): Disposable {
  const descriptor = openSocket(namespace);
  setOption(descriptor.fd, SOL_SOCKET, SO_RCVBUF, bufferBytes);
  for (const group of groups) {
    setOption(descriptor.fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group);
  }
  const buffer = Buffer.alloc(RECEIVE_BYTES);
  const drain = (): void => {
    while (!descriptor.closed) {
      try {
        const { fd } = descriptor;
        const length = retryInterrupted(() =>
          checked(libc.recv(fd, buffer, buffer.length, MSG_DONTWAIT), 'recv', 'netlink events'),
        );
        eachMessage(buffer.subarray(0, length), onMessage);
      } catch (error) {
        if (isKernelError(error, 'EAGAIN', 'EWOULDBLOCK')) return;
        if (!isKernelError(error, 'ENOBUFS')) throw error;
        onOverrun();
      }
    }
  };
  const watch = watchReadable(descriptor.fd, drain);
  return {
    [Symbol.dispose]: () => {
      watch[Symbol.dispose]();
      descriptor.close();
    },
  };
}

const sendAsync = promisify<number, Buffer, number, number, number>(libc.send.async);

function openSocket(namespace: Namespace | undefined): Descriptor {
  const open = (): number =>
    checked(libc.socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), 'socket', 'netlink');
  const descriptor = new Descriptor(namespace === undefined ? open() : namespace.run(open));
  const address = Buffer.alloc(12);
  address.writeUInt16LE(AF_NETLINK, 0);
  checked(libc.bind(descriptor.fd, address, address.length), 'bind', 'netlink');
  return descriptor;
}

function setOption(fd: number, level: number, name: number, value: number): void {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value, 0);
  checked(libc.setsockopt(fd, level, name, bytes, bytes.length), 'setsockopt', `${level}/${name}`);
}

function retryInterrupted<T>(call: () => T): T {
  for (;;) {
    try {
      return call();
    } catch (error) {
      if (!isKernelError(error, 'EINTR')) throw error;
    }
  }
}

interface RawMessage extends Received {
  readonly flags: number;
  readonly sequence: number;
}

function eachMessage(bytes: Buffer, visit: (message: RawMessage) => void): void {
  let offset = 0;
  while (offset + HEADER_BYTES <= bytes.length) {
    const length = bytes.readUInt32LE(offset);
    if (length < HEADER_BYTES || offset + length > bytes.length) return;
    visit({
      type: bytes.readUInt16LE(offset + 4),
      flags: bytes.readUInt16LE(offset + 6),
      sequence: bytes.readUInt32LE(offset + 8),
      body: bytes.subarray(offset + HEADER_BYTES, offset + length),
    });
    offset += (length + 3) & ~3;
  }
}

/** What an acknowledgement, or the end of a dump, says: undefined is success. */
function acknowledged(request: Request, flags: number, body: Buffer): KernelError | undefined {
  const errno = body.length >= 4 ? -body.readInt32LE(0) : 0;
  if (errno === 0) return undefined;
  return errorOf(
    request,
    errno,
    (flags & NLM_F_ACK_TLVS) === 0 ? undefined : extendedText(flags, body),
  );
}

function extendedText(flags: number, body: Buffer): string | undefined {
  // The acknowledgement repeats the request behind the error number: its header alone (CAPPED), or, of a
  // dump, nothing of it.
  const start = (flags & NLM_F_CAPPED) === 0 ? 4 : 4 + HEADER_BYTES;
  try {
    return readAttributes(EXTENDED_ACK, body.subarray(start)).NLMSGERR_ATTR_MSG;
  } catch {
    return undefined;
  }
}

const errorOf = (
  { operation, subject }: Request,
  errno: number,
  kernelText?: string,
): KernelError =>
  new KernelError({
    operation: `netlink ${operation}`,
    subject,
    errno,
    ...(kernelText !== undefined && { kernelText }),
  });
