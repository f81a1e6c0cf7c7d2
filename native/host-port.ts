import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import type { IpAddress } from '#protocol/address.ts';
import { checked, isKernelError } from './errors.ts';
import * as libc from './libc.ts';
import { setOption, SOL_SOCKET } from './netlink-descriptor.ts';

const AF_INET = 2;
const AF_INET6 = 10;
const SOCK_CLOEXEC = 0o2000000;
const SO_REUSEADDR = 2;
const IPPROTO_IPV6 = 41;
const IPV6_V6ONLY = 26;
const TRANSPORTS = {
  tcp: { type: 1, protocol: 6 },
  udp: { type: 2, protocol: 17 },
  // One to one, as TCP.
  sctp: { type: 1, protocol: 132 },
} as const;

export interface HostPort {
  readonly protocol: keyof typeof TRANSPORTS;
  readonly family: 4 | 6;
  /** Without one: every address of the family. */
  readonly address?: IpAddress;
  readonly port: number;
}

/**
 * Asks the kernel, by binding for a moment, whether a process of this namespace holds a port: `free`, `held`, or
 * `absent` if the host has no such address. `free` also if the kernel cannot be asked (no such protocol, a privileged
 * port without the capability): then nobody is known to hold the port.
 */
export function probePort({
  protocol,
  family,
  address,
  port,
}: HostPort): 'free' | 'held' | 'absent' {
  const { type, protocol: number } = TRANSPORTS[protocol];
  const domain = family === 4 ? AF_INET : AF_INET6;
  const subject = `${protocol} ${address?.toString() ?? '*'} ${port}`;
  let fd: number;
  try {
    fd = checked(libc.socket(domain, type | SOCK_CLOEXEC, number), 'socket', subject);
  } catch (error) {
    const codes = ['EPROTONOSUPPORT', 'ESOCKTNOSUPPORT', 'EAFNOSUPPORT', 'EPROTOTYPE', 'EINVAL'];
    if (isKernelError(error, ...codes)) return 'free';
    throw error;
  }
  try {
    // A connection that has ended (TIME_WAIT) holds nothing; for UDP the option would allow sharing.
    if (protocol !== 'udp') setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (family === 6) setOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    const name = socketAddress(family, address, port);
    checked(libc.bind(fd, name, name.length), 'bind', subject);
    return 'free';
  } catch (error) {
    if (isKernelError(error, 'EADDRINUSE')) return 'held';
    if (isKernelError(error, 'EADDRNOTAVAIL')) return 'absent';
    if (isKernelError(error, 'EACCES')) return 'free';
    throw error;
  } finally {
    libc.close(fd);
  }
}

/** struct sockaddr_in and sockaddr_in6 (man 7 ip, man 7 ipv6). */
function socketAddress(family: 4 | 6, address: IpAddress | undefined, port: number): Buffer {
  const name = Buffer.alloc(family === 4 ? 16 : 28);
  name.writeUInt16LE(family === 4 ? AF_INET : AF_INET6, 0);
  name.writeUInt16BE(port, 2);
  if (address !== undefined) name.set(address.toBytes(), family === 4 ? 4 : 8);
  return name;
}

export interface PortHolder {
  readonly pid: number;
  readonly command: string;
}

/** The process that holds a port, as far as /proc tells; null if it does not. Reads every process: slow. */
export const portHolder = (held: Pick<HostPort, 'protocol' | 'port'>): PortHolder | null =>
  portHolders(held).next().value ?? null;

/** All processes that hold a port, each as it is found. */
export function* portHolders({
  protocol,
  port,
}: Pick<HostPort, 'protocol' | 'port'>): Generator<PortHolder, undefined> {
  const inodes = new Set([protocol, `${protocol}6`].flatMap((table) => socketsOn(table, port)));
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    const command = commandOf(pid);
    if (command !== null && holdsOne(pid, inodes)) yield { pid: Number(pid), command };
  }
  return undefined;
}

/** Inodes of the sockets that are bound to a port, listeners first (man 5 proc_pid_net). */
function socketsOn(table: string, port: number): string[] {
  const hex = port.toString(16).toUpperCase().padStart(4, '0');
  const TCP_LISTEN = '0A';
  let text: string;
  try {
    text = readFileSync(`/proc/thread-self/net/${table}`, 'utf8');
  } catch {
    return []; // SCTP has another table
  }
  return text
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .filter(([, local, , state]) => {
      const bound = local?.endsWith(`:${hex}`) === true;
      return bound && (!table.startsWith('tcp') || state === TCP_LISTEN);
    })
    .map((columns) => columns[9] ?? '');
}

/** Null: it has ended. */
function commandOf(pid: string): string | null {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trim();
  } catch {
    return null;
  }
}

function holdsOne(pid: string, inodes: ReadonlySet<string>): boolean {
  const folder = `/proc/${pid}/fd`;
  try {
    return readdirSync(folder).some((fd) => {
      const target = readlinkSync(`${folder}/${fd}`);
      return inodes.has(/^socket:\[(\d+)\]$/.exec(target)?.[1] ?? '-');
    });
  } catch {
    return false; // it has ended, or is nobody we may look at
  }
}
