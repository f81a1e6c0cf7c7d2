import type { IpAddress } from '#protocol/address.ts';
import { be16, be32, family, ip, nested, type Table, u32, u8, type Values } from './codec.ts';
import { isKernelError } from './errors.ts';
import type { Namespace } from './namespace.ts';
import { NetlinkSocket, type Request } from './netlink.ts';
import { NETLINK_NETFILTER } from './netlink-descriptor.ts';
import { AF_INET, AF_INET6 } from './rtnetlink.ts';

// Connection tracking (linux/netfilter/nfnetlink_conntrack.h). IPv4 and IPv6 addresses have different attributes; a
// tuple describes a packet of one direction.

const NFNL_SUBSYS_CTNETLINK = 1;
const IPCTNL_MSG_CT_GET = (NFNL_SUBSYS_CTNETLINK << 8) | 1;
const IPCTNL_MSG_CT_DELETE = (NFNL_SUBSYS_CTNETLINK << 8) | 2;
const IPPROTO_UDP = 17;
/** net/netfilter/nf_internals.h: which parts of a tuple CTA_FILTER compares. */
const CTA_FILTER_PROTO_NUM = 1 << 3;
const CTA_FILTER_PROTO_DST_PORT = 1 << 5;

const TUPLE = {
  CTA_TUPLE_IP: nested(
    1,
    { CTA_IP_V4_SRC: ip(1), CTA_IP_V4_DST: ip(2), CTA_IP_V6_SRC: ip(3), CTA_IP_V6_DST: ip(4) },
    { flagged: true },
  ),
  CTA_TUPLE_PROTO: nested(
    2,
    { CTA_PROTO_NUM: u8(1), CTA_PROTO_SRC_PORT: be16(2), CTA_PROTO_DST_PORT: be16(3) },
    { flagged: true },
  ),
} as const satisfies Table;

const CONNTRACK = {
  CTA_TUPLE_ORIG: nested(1, TUPLE, { flagged: true }),
  CTA_TUPLE_REPLY: nested(2, TUPLE, { flagged: true }),
  CTA_ID: be32(12),
  CTA_FILTER: nested(
    25,
    { CTA_FILTER_ORIG_FLAGS: u32(1), CTA_FILTER_REPLY_FLAGS: u32(2) },
    { flagged: true },
  ),
} as const satisfies Table;

const conntrackMessage = family({ nfgen_family: 'u8', version: 'u8', res_id: 'be16' }, CONNTRACK);

/** A tracked flow, as its first packet looked. */
export interface Flow {
  readonly destination: IpAddress;
  /** Where replies come from; after DNAT this differs from `destination`. */
  readonly replySource: IpAddress;
}

/** Tracked flows of a network namespace. Errors are KernelError. */
export class Conntrack implements Disposable {
  readonly #socket: NetlinkSocket;

  constructor(namespace?: Namespace) {
    this.#socket = NetlinkSocket.open({
      protocol: NETLINK_NETFILTER,
      ...(namespace !== undefined && { namespace }),
    });
  }

  /**
   * Forgets the UDP flows to a port that `isStale` picks; answers how many. UDP has no connection set-up that would
   * look a port map up again: a flow that goes on keeps the destination that it once got.
   */
  forgetUdp(port: number, isStale: (flow: Flow) => boolean): number {
    let forgotten = 0;
    for (const nfgen_family of [AF_INET, AF_INET6]) {
      for (const { attributes, flow } of this.#list(nfgen_family, port)) {
        if (!isStale(flow)) continue;
        this.#forget(nfgen_family, attributes);
        forgotten += 1;
      }
    }
    return forgotten;
  }

  [Symbol.dispose](): void {
    this.#socket[Symbol.dispose]();
  }

  #list(nfgen_family: number, port: number): { attributes: Entry; flow: Flow }[] {
    const CTA_TUPLE_ORIG = {
      CTA_TUPLE_PROTO: { CTA_PROTO_NUM: IPPROTO_UDP, CTA_PROTO_DST_PORT: port },
    };
    const flags = CTA_FILTER_PROTO_NUM | CTA_FILTER_PROTO_DST_PORT;
    const rows = this.#socket.dump(
      request('IPCTNL_MSG_CT_GET', IPCTNL_MSG_CT_GET, port, nfgen_family, {
        CTA_TUPLE_ORIG,
        CTA_FILTER: { CTA_FILTER_ORIG_FLAGS: flags, CTA_FILTER_REPLY_FLAGS: 0 },
      }),
      ({ body }) => conntrackMessage.read(body).attributes,
    );
    return rows.flatMap((attributes) => {
      const { CTA_TUPLE_ORIG: original, CTA_TUPLE_REPLY: reply } = attributes;
      const proto = original?.CTA_TUPLE_PROTO;
      // Kernels before 5.8 know no filter, and list all flows.
      if (proto?.CTA_PROTO_NUM !== IPPROTO_UDP || proto.CTA_PROTO_DST_PORT !== port) return [];
      const destination = destinationOf(original?.CTA_TUPLE_IP);
      const replySource = sourceOf(reply?.CTA_TUPLE_IP);
      if (destination === undefined || replySource === undefined) return [];
      return [{ attributes, flow: { destination, replySource } }];
    });
  }

  #forget(nfgen_family: number, { CTA_TUPLE_ORIG, CTA_ID }: Entry): void {
    const port = CTA_TUPLE_ORIG?.CTA_TUPLE_PROTO?.CTA_PROTO_DST_PORT ?? 0;
    const attributes = { CTA_TUPLE_ORIG, CTA_ID };
    try {
      this.#socket.request(
        request('IPCTNL_MSG_CT_DELETE', IPCTNL_MSG_CT_DELETE, port, nfgen_family, attributes),
      );
    } catch (error) {
      // It ran out meanwhile.
      if (!isKernelError(error, 'ENOENT')) throw error;
    }
  }
}

type Entry = Values<typeof CONNTRACK>;
type Addresses = Values<typeof TUPLE>['CTA_TUPLE_IP'];

const destinationOf = (addresses: Addresses): IpAddress | undefined =>
  addresses?.CTA_IP_V4_DST ?? addresses?.CTA_IP_V6_DST;

const sourceOf = (addresses: Addresses): IpAddress | undefined =>
  addresses?.CTA_IP_V4_SRC ?? addresses?.CTA_IP_V6_SRC;

const request = (
  operation: string,
  type: number,
  port: number,
  nfgen_family: number,
  attributes: Entry,
): Request => ({
  type,
  operation,
  subject: `udp dport ${port}`,
  write: (writer) => conntrackMessage.write(writer, { nfgen_family }, attributes),
});
