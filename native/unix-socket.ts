import { Descriptor } from './descriptor.ts';
import { checked, KernelError } from './errors.ts';
import { bind, connect, socket, socketpair } from './libc.ts';

// Making and naming sockets of AF_UNIX (man 7 unix).

const AF_UNIX = 1;
const SOCK_CLOEXEC = 0o2000000;
const SUN_PATH_BYTES = 108;
const EINVAL = 22;
const ENAMETOOLONG = 36;

export const SOCK_DGRAM = 2;
export const SOCK_SEQPACKET = 5;
export const SOCK_NONBLOCK = 0o4000;

/** A socket that closes on exec. `type`: one of SOCK_…, or with SOCK_NONBLOCK. */
export const openSocket = (type: number): Descriptor =>
  new Descriptor(checked(socket(AF_UNIX, type | SOCK_CLOEXEC, 0), 'socket', 'AF_UNIX'));

/** Two sockets of packets, connected to each other. */
export function socketPair(): [Descriptor, Descriptor] {
  const fds = new Int32Array(2);
  const type = SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC;
  checked(socketpair(AF_UNIX, type, 0, fds), 'socketpair', 'AF_UNIX');
  const [one = -1, other = -1] = fds;
  return [new Descriptor(one), new Descriptor(other)];
}

export function connectTo(own: Descriptor, path: string): void {
  const address = sockaddrOf(path, 'connect');
  checked(connect(own.fd, address, address.length), 'connect', path);
}

export function bindTo(own: Descriptor, path: string): void {
  const address = sockaddrOf(path, 'bind');
  checked(bind(own.fd, address, address.length), 'bind', path);
}

/** struct sockaddr_un. An abstract name has its exact length and no zero at the end (man 7 unix). */
function sockaddrOf(path: string, operation: string): Buffer {
  const name = Buffer.from(path.startsWith('@') ? `\0${path.slice(1)}` : `${path}\0`);
  if (name.length > SUN_PATH_BYTES) {
    throw new KernelError({ operation, subject: path, errno: ENAMETOOLONG });
  }
  if (path.includes('\0')) throw new KernelError({ operation, subject: path, errno: EINVAL });
  const address = Buffer.alloc(2 + name.length);
  address.writeUInt16LE(AF_UNIX, 0);
  name.copy(address, 2);
  return address;
}
