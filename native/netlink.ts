import type { Descriptor } from './descriptor.ts';
import { checked, errnoName, isKernelError, KernelError } from './errors.ts';
import * as libc from './libc.ts';
import type { Namespace } from './namespace.ts';
import {
  openNetlink,
  retryInterrupted,
  setOption,
  SOL_NETLINK,
  SOL_SOCKET,
} from './netlink-descriptor.ts';
import {
  eachMessage,
  type Framed,
  NLMSG_HEADER_BYTES,
  type Outcome,
  outcomeOf,
  type Received,
} from './netlink-message.ts';
import {
  NLM_F_ACK,
  NLM_F_DUMP,
  NLM_F_DUMP_INTR,
  NLM_F_REQUEST,
  NLMSG_DONE,
  NLMSG_ERROR,
} from './rtnetlink.ts';
import { atOnce, type Steps } from './steps.ts';
import { traced } from './trace.ts';
import { Writer } from './writer.ts';

const SO_RCVTIMEO = 20;
const NETLINK_CAP_ACK = 10;
const NETLINK_EXT_ACK = 11;
const NETLINK_GET_STRICT_CHK = 12;
const MSG_TRUNC = 0x20;
const SIOCGIFNAME = 0x8910;
const SIOCGIFCONF = 0x8912;
const SIOCGIFINDEX = 0x8933;
/** struct ifreq: name of 16 bytes, then here the index. */
const IFREQ_BYTES = 40;
/** struct ifconf: the length, then a pointer. */
const IFCONF_BYTES = 16;
const IFNAME_BYTES = 16;
const EINTR = 4;
const EIO = 5;
const ENODEV = 19;

/** The kernel fills dumps up to 32 KiB a message if the reader offers that much. */
const RECEIVE_BYTES = 64 * 1024;
/** The kernel answers within the call that sends; this limit only keeps a fault from stopping the process. */
const ANSWER_TIMEOUT_SECONDS = 10n;
/** Requests in one send: the answers to some 250 fill a socket's buffer, and further ones are lost. */
const MAX_BATCH = 64;
const DUMP_TRIES = 10;

/** One message to the kernel. */
export interface Request {
  /** RTM_… number. */
  readonly type: number;
  /** `RTM_NEWLINK`: for errors and traces. */
  readonly operation: string;
  /** The object of the request: `tap-web`, `10.42.0.5/24`. */
  readonly subject: string;
  /** NLM_F_CREATE, NLM_F_EXCL and the like; REQUEST and ACK are set for all. */
  readonly flags?: number;
  /** An errno that counts as success: what was to be done is done already. */
  readonly accept?: 'EEXIST' | 'ENOENT';
  /** Writes header and attributes of the message's family. */
  readonly write: (writer: Writer) => void;
}

/**
 * A netlink socket, of NETLINK_ROUTE by default, of one network namespace, with strict checking and extended
 * acknowledgements. Requests are synchronous: the kernel does them within `send`, and the answer is there when it
 * returns. So a request costs some tens of microseconds, and an attach is one undisturbed stretch. Errors are
 * KernelError with the kernel's own text. After an error of any kind the socket can still be used.
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
  static open({
    namespace,
    protocol,
  }: { namespace?: Namespace; protocol?: number } = {}): NetlinkSocket {
    return new NetlinkSocket(openNetlink(namespace, prepare, protocol));
  }

  /** Does one request. What the kernel sends back before its acknowledgement goes to `onMessage`. */
  request(request: Request, onMessage?: (message: Received) => void): void {
    traced(request.operation, request.subject, () => this.#exchange([request], onMessage));
  }

  /**
   * Asks for one object. Null if the kernel answers with the errno for "there is none": that is no failure, and no
   * failed operation in a trace.
   */
  find<T>(request: Request, absent: string, parse: (message: Received) => T): T | null {
    return traced(request.operation, request.subject, () => {
      let found: T | null = null;
      try {
        this.#exchange([request], (message) => {
          found = parse(message);
        });
      } catch (error) {
        if (!isKernelError(error, absent)) throw error;
      }
      return found;
    });
  }

  /**
   * The index of the device of that name, null if there is none. SIOCGIFINDEX (man 7 netdevice) takes a microsecond
   * and no lock; RTM_GETLINK would describe the whole device.
   */
  deviceIndex(name: string): number | null {
    // The kernel would look up the first 15 bytes only.
    if (Buffer.byteLength(name) >= IFNAME_BYTES) return null;
    const ifreq = Buffer.alloc(IFREQ_BYTES);
    ifreq.write(name, 'utf8');
    if (libc.ioctl(this.#descriptor.fd, SIOCGIFINDEX, ifreq) === 0) {
      return ifreq.readInt32LE(IFNAME_BYTES);
    }
    const errno = libc.errno();
    if (errno === ENODEV) return null;
    throw new KernelError({ operation: 'SIOCGIFINDEX', subject: name, errno });
  }

  /** The way back: the name of the device of that index (SIOCGIFNAME). */
  deviceName(index: number): string | null {
    const ifreq = Buffer.alloc(IFREQ_BYTES);
    ifreq.writeInt32LE(index, IFNAME_BYTES);
    if (libc.ioctl(this.#descriptor.fd, SIOCGIFNAME, ifreq) === 0) {
      return ifreq.toString('utf8', 0, ifreq.indexOf(0));
    }
    const errno = libc.errno();
    if (errno === ENODEV) return null;
    throw new KernelError({ operation: 'SIOCGIFNAME', subject: `#${index}`, errno });
  }

  /** How many IPv4 addresses there are (SIOCGIFCONF, which counts into a buffer that is none). As cheap. */
  addressCount(): number {
    const ifconf = Buffer.alloc(IFCONF_BYTES);
    const { fd } = this.#descriptor;
    checked(libc.ioctl(fd, SIOCGIFCONF, ifconf), 'SIOCGIFCONF', 'addresses');
    return ifconf.readInt32LE(0) / IFREQ_BYTES;
  }

  /**
   * Does several requests, 64 in one send. The kernel tries each, whatever became of the earlier ones. The first
   * error is thrown once all are answered.
   */
  batch(requests: readonly Request[]): void {
    const [head] = requests;
    if (head === undefined) return;
    const operations = new Set(requests.map(({ operation }) => operation));
    traced([...operations].join(' '), head.subject, () => {
      const failures: unknown[] = [];
      for (let done = 0; done < requests.length; done += MAX_BATCH) {
        try {
          this.#exchange(requests.slice(done, done + MAX_BATCH));
        } catch (error) {
          failures.push(error);
        }
      }
      if (failures.length > 0) throw failures[0];
    });
  }

  /**
   * Does one request on koffi's thread pool: for deletions, for which the kernel waits many milliseconds. The socket
   * takes no other request until the promise settles.
   */
  async requestAsync(request: Request): Promise<void> {
    const first = this.#compose([request], NLM_F_ACK);
    const bytes = Buffer.from(this.#writer.bytes);
    this.#busy = true;
    try {
      await sendAsync(this.#descriptor.fd, bytes, request);
    } finally {
      this.#busy = false;
    }
    this.#collect([request], first);
  }

  /**
   * Reads a whole table. A dump is read again, ten times at most, if the kernel had no memory for it or marks it as
   * interrupted (the table changed meanwhile, and entries may be missing); after that the error is EINTR.
   */
  dump<T>(request: Request, parse: (message: Received) => T): T[] {
    return traced(request.operation, request.subject, () => atOnce(this.dumpSteps(request, parse)));
  }

  /**
   * As `dump`, with a pause after each message of the kernel, which holds some twenty devices and takes a third of a
   * millisecond; in no trace. Until it is done the socket takes no other request; if it is given up midway, the
   * socket can only be closed.
   */
  *dumpSteps<T>(request: Request, parse: (message: Received) => T): Steps<T[]> {
    for (let tries = 0; tries < DUMP_TRIES; tries += 1) {
      const sequence = this.#compose([request], NLM_F_DUMP);
      this.#send(request);
      const rows: T[] = [];
      const whole = yield* this.#readDump(request, sequence, (message) => {
        rows.push(parse(message));
      });
      if (whole) return rows;
    }
    throw errorOf(request, {
      errno: EINTR,
      kernelText: `the table kept changing while it was read ${DUMP_TRIES} times`,
    });
  }

  [Symbol.dispose](): void {
    this.#descriptor.close();
  }

  /** Writes the messages; returns the sequence number of the first. */
  #compose(requests: readonly Request[], flags: number): number {
    if (this.#busy) {
      throw new Error('netlink socket used while another request of it is under way');
    }
    const writer = this.#writer;
    writer.reset();
    const first = this.#sequence + 1;
    for (const request of requests) {
      this.#sequence += 1;
      const start = writer.reserve(NLMSG_HEADER_BYTES);
      writer.patchU16(start + 4, request.type);
      writer.patchU16(start + 6, NLM_F_REQUEST | flags | (request.flags ?? 0));
      writer.patchU32(start + 8, this.#sequence);
      request.write(writer);
      writer.patchU32(start, writer.length - start);
    }
    return first;
  }

  #exchange(requests: readonly Request[], onMessage?: (message: Received) => void): void {
    const first = this.#compose(requests, NLM_F_ACK);
    const [head] = requests;
    if (head !== undefined) this.#send(head);
    this.#collect(requests, first, onMessage);
  }

  #send(request: Request): void {
    const { buffer, length } = this.#writer;
    const { fd } = this.#descriptor;
    retryInterrupted(() =>
      checked(libc.send(fd, buffer, length, 0), named(request), request.subject),
    );
  }

  #receive(request: Request): Buffer {
    const { fd } = this.#descriptor;
    const length = retryInterrupted(() =>
      checked(
        libc.recv(fd, this.#received, RECEIVE_BYTES, MSG_TRUNC),
        named(request),
        request.subject,
      ),
    );
    if (length > RECEIVE_BYTES) {
      throw errorOf(request, { errno: EIO, kernelText: `an answer of ${length} bytes` });
    }
    return this.#received.subarray(0, length);
  }

  /** Reads until every request has its acknowledgement, also after an error; then throws the first error. */
  #collect(
    requests: readonly Request[],
    first: number,
    onMessage?: (message: Received) => void,
  ): void {
    const failures = new Failures();
    let open = requests.length;
    const [head] = requests;
    while (open > 0 && head !== undefined) {
      eachMessage(this.#receive(head), (message) => {
        const request = requests[message.sequence - first];
        if (request === undefined) return; // the rest of something that was given up
        if (message.type === NLMSG_ERROR) {
          open -= 1;
          failures.note(request, message);
        } else if (onMessage !== undefined) {
          failures.during(() => onMessage(message));
        }
      });
    }
    failures.throwFirst();
  }

  /**
   * Reads one dump to its end, also after an error: while a dump is unread, the kernel refuses the next one on the
   * same socket (EBUSY). False if it is not the whole table.
   */
  *#readDump(
    request: Request,
    expected: number,
    onMessage: (message: Received) => void,
  ): Steps<boolean> {
    const failures = new Failures();
    let whole = true;
    let done = false;
    let shortages = 0;
    while (!done) {
      this.#busy = false;
      try {
        eachMessage(this.#receive(request), (message) => {
          if (message.sequence !== expected) return;
          if ((message.flags & NLM_F_DUMP_INTR) !== 0) whole = false;
          if (message.type === NLMSG_DONE || message.type === NLMSG_ERROR) {
            done = true;
            failures.note(request, message);
          } else if (whole) {
            failures.during(() => onMessage(message));
          }
        });
      } catch (error) {
        shortages += 1;
        if (!isKernelError(error, 'ENOBUFS') || shortages > DUMP_TRIES) throw error;
        whole = false;
      }
      this.#busy = !done;
      if (!done) yield;
    }
    failures.throwFirst();
    return whole;
  }
}

/** The errors of an exchange, which is read to its end all the same. */
class Failures {
  readonly #seen: unknown[] = [];

  /** Notes the kernel's answer, if it is an error. */
  note(request: Request, message: Framed): void {
    const outcome = outcomeOf(message);
    if (outcome.errno === 0 || errnoName(outcome.errno) === request.accept) return;
    this.#seen.push(errorOf(request, outcome));
  }

  /** Runs work, once nothing has failed before. */
  during(work: () => void): void {
    if (this.#seen.length > 0) return;
    try {
      work();
    } catch (error) {
      this.#seen.push(error);
    }
  }

  throwFirst(): void {
    if (this.#seen.length > 0) throw this.#seen[0];
  }
}

function prepare(fd: number): void {
  setOption(fd, SOL_NETLINK, NETLINK_CAP_ACK, 1);
  setOption(fd, SOL_NETLINK, NETLINK_EXT_ACK, 1);
  setOption(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1);
  const timeval = Buffer.alloc(16);
  timeval.writeBigInt64LE(ANSWER_TIMEOUT_SECONDS, 0);
  checked(
    libc.setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, timeval, timeval.length),
    'setsockopt',
    'SO_RCVTIMEO',
  );
}

function sendAsync(fd: number, bytes: Buffer, request: Request): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  // Only within this callback errno is that of the pool thread's call.
  libc.send.async(fd, bytes, bytes.length, 0, (failed: unknown, sent: number) => {
    if (failed !== null) reject(failed);
    else if (sent < 0) reject(errorOf(request, { errno: libc.errno() }));
    else resolve();
  });
  return promise;
}

const named = ({ operation }: Request): string => `netlink ${operation}`;

const errorOf = (request: Request, outcome: Outcome): KernelError =>
  new KernelError({ operation: named(request), subject: request.subject, ...outcome });
