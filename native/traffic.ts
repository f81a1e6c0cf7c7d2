import { bytes, family, nested, structAttribute, type Table, text, u32, u64 } from './codec.ts';
import { isKernelError } from './errors.ts';
import type { LinkReference } from './link.ts';
import type { NetlinkSocket, Request } from './netlink.ts';
import type { Received } from './netlink-message.ts';
import { NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE } from './rtnetlink.ts';
import type { Steps } from './steps.ts';
import type { Writer } from './writer.ts';

// Traffic control (man 8 tc; linux/rtnetlink.h, pkt_sched.h, pkt_cls.h, tc_act/tc_mirred.h): a token bucket for the
// frames that leave a device. Frames that come in by a device can be handed to another device; they leave there, and
// can have a bucket there.

const RTM_NEWQDISC = 36;
const RTM_DELQDISC = 37;
const RTM_GETQDISC = 38;
const RTM_NEWTFILTER = 44;
const RTM_GETTFILTER = 46;
const TC_H_ROOT = 0xffff_ffff;
const TC_H_CLSACT = 0xffff_fff1;
/** TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS) */
const CLSACT_INGRESS = 0xffff_fff2;
const CLSACT_HANDLE = 0xffff_0000;
const TC_LINKLAYER_ETHERNET = 1;
const TC_U32_TERMINAL = 1;
const TC_ACT_STOLEN = 4;
const TCA_EGRESS_REDIR = 1;
/** Priority 1, ETH_P_ALL in network order. */
const EVERY_FRAME = (1 << 16) | 0x0300;
const MAX_RATE32 = 0xffff_ffff;
const BITS_PER_BYTE = 8;

const TCMSG = {
  tcm_family: 'u8',
  pad1: 'pad1',
  pad2: 'pad2',
  tcm_ifindex: 'i32',
  tcm_handle: 'u32',
  tcm_parent: 'u32',
  tcm_info: 'u32',
} as const;

const TBF = {
  /** struct tc_tbf_qopt: rates are struct tc_ratespec, in bytes a second; the peak rate is not used. */
  TCA_TBF_PARMS: structAttribute(1, {
    cell_log: 'u8',
    linklayer: 'u8',
    overhead: 'u16',
    cell_align: 'u16',
    mpu: 'u16',
    rate: 'u32',
    peak_linklayer: 'u32',
    peak_overhead: 'u32',
    peak_rate: 'u32',
    limit: 'u32',
    buffer: 'u32',
    mtu: 'u32',
  }),
  /** In place of the rate in TCA_TBF_PARMS, if that has too few bits. */
  TCA_TBF_RATE64: u64(4),
  /** In bytes, where TCA_TBF_PARMS wants ticks. */
  TCA_TBF_BURST: u32(6),
} as const satisfies Table;

/** struct tc_u32_sel with one key that every frame matches: mask 0. */
const SELECT_ALL = Uint8Array.from([TC_U32_TERMINAL, 0, 1, ...Buffer.alloc(29)]);

const MIRRED = {
  /** struct tc_mirred */
  TCA_MIRRED_PARMS: structAttribute(2, {
    index: 'u32',
    capab: 'u32',
    action: 'i32',
    refcnt: 'i32',
    bindcnt: 'i32',
    eaction: 'i32',
    ifindex: 'u32',
  }),
} as const satisfies Table;

const ACTION = {
  TCA_ACT_KIND: text(1),
  TCA_ACT_OPTIONS: nested(2, MIRRED, { flagged: true }),
} as const satisfies Table;

const U32 = {
  /** Actions by their order, from 1. */
  TCA_U32_ACT: nested(7, { first: nested(1, ACTION) }),
  TCA_U32_SEL: bytes(5),
} as const satisfies Table;

const TCA_KIND = text(1);
export const qdiscMessage = family(TCMSG, { TCA_KIND });
const tbfMessage = family(TCMSG, { TCA_KIND, TCA_OPTIONS: nested(2, TBF) });
export const u32Message = family(TCMSG, { TCA_KIND, TCA_OPTIONS: nested(2, U32) });

export interface TokenBucket {
  readonly bitsPerSecond: number;
  /** What may leave at once. */
  readonly burstBytes: number;
  /** What may wait; more is dropped. */
  readonly queueBytes: number;
}

/** Queueing of one network namespace. Errors are KernelError. */
export class Traffic {
  readonly #socket: NetlinkSocket;

  constructor(socket: NetlinkSocket) {
    this.#socket = socket;
  }

  /** Limits what leaves a device. An existing limit is changed in place: frames that wait go on waiting. */
  limit(link: LinkReference, { bitsPerSecond, burstBytes, queueBytes }: TokenBucket): void {
    const rate = Math.ceil(bitsPerSecond / BITS_PER_BYTE);
    this.#socket.request(
      requestOf({ ...NEW_QDISC, flags: NLM_F_CREATE | NLM_F_REPLACE }, link, (writer, header) =>
        tbfMessage.write(
          writer,
          { ...header, tcm_parent: TC_H_ROOT },
          {
            TCA_KIND: 'tbf',
            TCA_OPTIONS: {
              TCA_TBF_PARMS: {
                ...NO_PARAMETERS,
                linklayer: TC_LINKLAYER_ETHERNET,
                rate: Math.min(rate, MAX_RATE32),
                limit: queueBytes,
              },
              ...(rate >= MAX_RATE32 && { TCA_TBF_RATE64: BigInt(rate) }),
              TCA_TBF_BURST: burstBytes,
            },
          },
        ),
      ),
    );
  }

  /** The rate in bits a second that `limit` set on a device; null if there is none. */
  limitOf(link: LinkReference): number | null {
    const found = this.#socket.find(
      requestOf(GET_QDISC, link, (writer, header) =>
        qdiscMessage.write(writer, { ...header, tcm_parent: TC_H_ROOT }, {}),
      ),
      'ENOENT',
      limitIn,
    );
    return found?.bitsPerSecond ?? null;
  }

  /** The same of all devices that have one, by index; with pauses (`NetlinkSocket.dumpSteps`). */
  *limitsSteps(): Steps<Map<number, number>> {
    const found = yield* this.#socket.dumpSteps(
      requestOf(LIST_QDISCS, { index: 0, name: 'queues' }, (writer, header) =>
        qdiscMessage.write(writer, header, {}),
      ),
      limitIn,
    );
    return new Map(
      found.flatMap((one) => (one === undefined ? [] : [[one.ifindex, one.bitsPerSecond]])),
    );
  }

  /** The index of the device that `redirectIngress` hands a device's frames to; null when it does not. */
  redirectOf(link: LinkReference): number | null {
    const found = this.#socket.dump(
      requestOf(LIST_FILTERS, link, (writer, header) =>
        u32Message.write(writer, { ...header, tcm_parent: CLSACT_INGRESS }, {}),
      ),
      // The options of other kinds are of other forms.
      ({ body }) => {
        if (qdiscMessage.read(body).attributes.TCA_KIND !== 'u32') return undefined;
        const { TCA_U32_ACT: actions } = u32Message.read(body).attributes.TCA_OPTIONS ?? {};
        return actions?.first?.TCA_ACT_OPTIONS?.TCA_MIRRED_PARMS?.ifindex;
      },
    );
    return found.find((ifindex) => ifindex !== undefined) ?? null;
  }

  /** Ends `limit`; waiting frames are dropped. Success if there is no limit. */
  unlimit(link: LinkReference): void {
    this.#remove(link, { tcm_parent: TC_H_ROOT });
  }

  /**
   * Hands every frame that comes in by a device to another device, as if it left there. An IFB gives it back to where
   * it came from once it has passed the IFB's queue.
   */
  redirectIngress(link: LinkReference, target: number): void {
    const flags = NLM_F_CREATE | NLM_F_EXCL;
    this.#socket.request(
      requestOf({ ...NEW_QDISC, flags }, link, (writer, header) =>
        qdiscMessage.write(
          writer,
          { ...header, tcm_handle: CLSACT_HANDLE, tcm_parent: TC_H_CLSACT },
          { TCA_KIND: 'clsact' },
        ),
      ),
    );
    this.#socket.request(
      requestOf({ ...NEW_FILTER, flags }, link, (writer, header) =>
        u32Message.write(
          writer,
          { ...header, tcm_parent: CLSACT_INGRESS, tcm_info: EVERY_FRAME },
          {
            TCA_KIND: 'u32',
            TCA_OPTIONS: {
              TCA_U32_ACT: {
                first: {
                  TCA_ACT_KIND: 'mirred',
                  TCA_ACT_OPTIONS: {
                    TCA_MIRRED_PARMS: {
                      index: 0,
                      capab: 0,
                      action: TC_ACT_STOLEN,
                      refcnt: 0,
                      bindcnt: 0,
                      eaction: TCA_EGRESS_REDIR,
                      ifindex: target,
                    },
                  },
                },
              },
              TCA_U32_SEL: SELECT_ALL,
            },
          },
        ),
      ),
    );
  }

  /** Ends `redirectIngress`. Success when there is none. */
  unredirectIngress(link: LinkReference): void {
    this.#remove(link, { tcm_handle: CLSACT_HANDLE, tcm_parent: TC_H_CLSACT });
  }

  #remove(link: LinkReference, where: Partial<Header>): void {
    try {
      this.#socket.request(
        requestOf(DELETE_QDISC, link, (writer, header) =>
          qdiscMessage.write(writer, { ...header, ...where }, {}),
        ),
      );
    } catch (error) {
      // ENOENT and EINVAL: the device has the queue that it was born with.
      if (!isKernelError(error, 'ENOENT', 'EINVAL', 'ENODEV')) throw error;
    }
  }
}

function requestOf(
  message: { readonly type: number; readonly operation: string; readonly flags?: number },
  link: LinkReference,
  write: (writer: Writer, header: Partial<Header>) => void,
): Request {
  const { index, name } = typeof link === 'number' ? { index: link, name: `#${link}` } : link;
  return {
    ...message,
    subject: name,
    write: (writer) => write(writer, { tcm_ifindex: index }),
  };
}

/** The token bucket at the root of a device, from an answer about its queue. */
function limitIn({ body }: Received): { ifindex: number; bitsPerSecond: number } | undefined {
  const { header, attributes } = qdiscMessage.read(body);
  // The options of other kinds are of other forms.
  if (attributes.TCA_KIND !== 'tbf' || header.tcm_parent !== TC_H_ROOT) return undefined;
  const options = tbfMessage.read(body).attributes.TCA_OPTIONS;
  const { TCA_TBF_PARMS: parameters, TCA_TBF_RATE64: wide } = options ?? {};
  if (parameters === undefined) return undefined;
  const bitsPerSecond = Number(wide ?? parameters.rate) * BITS_PER_BYTE;
  return { ifindex: header.tcm_ifindex, bitsPerSecond };
}

interface Header {
  readonly tcm_ifindex: number;
  readonly tcm_handle: number;
  readonly tcm_parent: number;
  readonly tcm_info: number;
}

const NEW_QDISC = { type: RTM_NEWQDISC, operation: 'RTM_NEWQDISC' };
// Without the flag the kernel tells everybody except the one who asked.
const GET_QDISC = { type: RTM_GETQDISC, operation: 'RTM_GETQDISC', flags: NLM_F_ECHO };
const LIST_QDISCS = { type: RTM_GETQDISC, operation: 'RTM_GETQDISC' };
const LIST_FILTERS = { type: RTM_GETTFILTER, operation: 'RTM_GETTFILTER' };
const DELETE_QDISC = { type: RTM_DELQDISC, operation: 'RTM_DELQDISC' };
const NEW_FILTER = { type: RTM_NEWTFILTER, operation: 'RTM_NEWTFILTER' };

const NO_PARAMETERS = {
  cell_log: 0,
  linklayer: 0,
  overhead: 0,
  cell_align: 0,
  mpu: 0,
  rate: 0,
  peak_linklayer: 0,
  peak_overhead: 0,
  peak_rate: 0,
  limit: 0,
  buffer: 0,
  mtu: 0,
};
