import { readSync, writeSync } from 'node:fs';
import { MacAddress } from '#protocol/address.ts';
import { checked, isKernelError } from '#native/errors.ts';
import * as libc from '#native/libc.ts';
import { Namespace } from '#native/namespace.ts';
import { requestSeqpacket } from '#native/unix.ts';

// Frames as they are, into a device and out of it: by AF_PACKET, or by the descriptor of a TAP.

const AF_PACKET = 17;
const SOCK_RAW_NONBLOCK = 3 | 0o4000 | 0o2000000;
const ETH_P_ALL = 0x0003;
const SIOCGIFINDEX = 0x8933;
const SIOCSIFHWADDR = 0x8924;
const ARPHRD_ETHER = 1;
const IFREQ_BYTES = 40;
const IFNAMSIZ = 16;
const SOL_SOCKET = 1;
const SO_RCVBUFFORCE = 33;
const RECEIVE_BUFFER = 32 * 1024 * 1024;
const SOL_PACKET = 263;
const PACKET_ADD_MEMBERSHIP = 1;
const PACKET_IGNORE_OUTGOING = 23;
const PACKET_MR_PROMISC = 1;
const MAX_FRAME = 65_550;
const VNET_HDR_SIZE = 12;

export interface RawPort extends Disposable {
  send(frame: Uint8Array): void;
  /** All frames that came since the last time, without those that were sent here. */
  received(): Buffer[];
}

/** A device of the calling namespace, promiscuous; hears what comes in by it. */
export function openPacket(device: string): RawPort {
  const fd = checked(libc.socket(AF_PACKET, SOCK_RAW_NONBLOCK, 0), 'socket', 'AF_PACKET');
  const set = (level: number, name: number, value: Buffer): void => {
    checked(libc.setsockopt(fd, level, name, value, value.length), 'setsockopt', device);
  };
  const ifreq = Buffer.alloc(IFREQ_BYTES);
  ifreq.write(device);
  checked(libc.ioctl(fd, SIOCGIFINDEX, ifreq), 'SIOCGIFINDEX', device);
  const index = ifreq.readInt32LE(IFNAMSIZ);
  set(SOL_SOCKET, SO_RCVBUFFORCE, int(RECEIVE_BUFFER));
  set(SOL_PACKET, PACKET_IGNORE_OUTGOING, int(1));
  // struct packet_mreq: ifindex, type u16, length of an address u16, the address.
  const membership = Buffer.alloc(16);
  membership.writeInt32LE(index, 0);
  membership.writeUInt16LE(PACKET_MR_PROMISC, 4);
  set(SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership);
  // struct sockaddr_ll: family, protocol in network order, ifindex.
  const address = Buffer.alloc(20);
  address.writeUInt16LE(AF_PACKET, 0);
  address.writeUInt16BE(ETH_P_ALL, 2);
  address.writeInt32LE(index, 4);
  checked(libc.bind(fd, address, address.length), 'bind', device);
  const buffer = Buffer.alloc(MAX_FRAME);
  const receive = (): number => {
    try {
      return checked(libc.recv(fd, buffer, MAX_FRAME, 0), 'recv', device);
    } catch (error) {
      if (isKernelError(error, 'EAGAIN')) return 0;
      throw error;
    }
  };
  return {
    send: (frame) => {
      checked(libc.send(fd, frame, frame.length, 0), 'send', device);
    },
    received: () => {
      const frames: Buffer[] = [];
      for (;;) {
        const length = receive();
        if (length === 0) return frames;
        frames.push(Buffer.from(buffer.subarray(0, length)));
      }
    },
    [Symbol.dispose]: () => {
      libc.close(fd);
    },
  };
}

/** The workload's end of a container's port. */
export function openContainer(netns: string, device = 'eth0'): RawPort {
  using namespace = Namespace.open(netns);
  return namespace.run(() => openPacket(device));
}

/** A VM's port, by its descriptor. */
export interface ClaimedPort extends RawPort {
  readonly fd: number;
  /** As a VMM may do that does not mean well: SIOCSIFHWADDR. */
  changeMac(mac: string): void;
}

/** A VM's port of one queue with a vnet header, claimed as its VMM claims it. */
export async function claimVm(id: string, socketPath: string): Promise<ClaimedPort> {
  const request = Buffer.from(JSON.stringify({ op: 'claim', id }));
  const { bytes, descriptors } = await requestSeqpacket(socketPath, request);
  const [tap] = descriptors;
  if (tap === undefined) throw new Error(`no descriptor of ${id}: ${bytes.toString()}`);
  const header = Buffer.alloc(VNET_HDR_SIZE);
  const buffer = Buffer.alloc(VNET_HDR_SIZE + MAX_FRAME);
  return {
    fd: tap.fd,
    changeMac: (mac) => {
      // struct ifreq: a name, which does not count here, then a struct sockaddr of family ARPHRD_ETHER.
      const ifreq = Buffer.alloc(IFREQ_BYTES);
      ifreq.writeUInt16LE(ARPHRD_ETHER, IFNAMSIZ);
      ifreq.set(MacAddress.parse(mac).toBytes(), IFNAMSIZ + 2);
      checked(libc.ioctl(tap.fd, SIOCSIFHWADDR, ifreq), 'SIOCSIFHWADDR', id);
    },
    send: (frame) => {
      writeSync(tap.fd, Buffer.concat([header, frame]));
    },
    received: () => {
      const frames: Buffer[] = [];
      try {
        for (;;) {
          const length = readSync(tap.fd, buffer);
          frames.push(Buffer.from(buffer.subarray(VNET_HDR_SIZE, length)));
        }
      } catch (error) {
        if (error instanceof Error && 'code' in error && error.code === 'EAGAIN') return frames;
        throw error;
      }
    },
    [Symbol.dispose]: () => tap.close(),
  };
}

const int = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return bytes;
};
