import { Descriptor } from './descriptor.ts';
import { checked, isKernelError } from './errors.ts';
import * as libc from './libc.ts';
import type { Namespace } from './namespace.ts';

const AF_NETLINK = 16;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const NETLINK_ROUTE = 0;
export const NETLINK_NETFILTER = 12;
/** struct sockaddr_nl: family u16, padding, port u32, groups u32. */
const SOCKADDR_BYTES = 12;
export const SOL_SOCKET = 1;
export const SOL_NETLINK = 270;

/**
 * Opens a netlink socket, of NETLINK_ROUTE by default, in the caller's namespace or in a given one, where it stays, connects it to the
 * kernel and hands it to `prepare`. Nothing stays open when one of them throws.
 *
 * Connected, it takes messages from nobody else: CAP_NET_ADMIN inside a namespace is enough to send to any
 * netlink socket there, and a workload could make up the answers to our requests.
 */
export function openNetlink(
  namespace: Namespace | undefined,
  prepare: (fd: number) => void,
  protocol = NETLINK_ROUTE,
): Descriptor {
  const openSocket = (): number =>
    checked(libc.socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol), 'socket', 'netlink');
  const descriptor = new Descriptor(namespace?.run(openSocket) ?? openSocket());
  try {
    // Port 0 is the kernel; connecting also gives the socket a port of its own.
    const kernel = Buffer.alloc(SOCKADDR_BYTES);
    kernel.writeUInt16LE(AF_NETLINK, 0);
    checked(libc.connect(descriptor.fd, kernel, kernel.length), 'connect', 'netlink');
    prepare(descriptor.fd);
    return descriptor;
  } catch (error) {
    descriptor.close();
    throw error;
  }
}

/** Sets an option whose value is an int. */
export function setOption(fd: number, level: number, name: number, value: number): void {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value, 0);
  checked(libc.setsockopt(fd, level, name, bytes, bytes.length), 'setsockopt', `${level}/${name}`);
}

/** Repeats a call that a signal interrupted. */
export function retryInterrupted<T>(call: () => T): T {
  for (;;) {
    try {
      return call();
    } catch (error) {
      if (!isKernelError(error, 'EINTR')) throw error;
    }
  }
}
