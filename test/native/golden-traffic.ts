import { qdiscMessage, u32Message } from '#native/traffic.ts';
import { type Golden, golden } from './golden.ts';

// What `tc` of iproute2 6.1 sends, captured by strace on a device of index 2, with an IFB of index 3. Of a token
// bucket it sends tables for kernels before 3.8, which ours leaves out: those are compared by what `tc` reads back.

const RTM_NEWQDISC = 36;
const RTM_NEWTFILTER = 44;

export const GOLDEN_TRAFFIC: readonly Golden[] = [
  golden({
    command: 'tc qdisc add dev v0 clsact',
    type: RTM_NEWQDISC,
    family: qdiscMessage,
    header: { tcm_ifindex: 2, tcm_handle: 0xffff_0000, tcm_parent: 0xffff_fff1 },
    attributes: { TCA_KIND: 'clsact' },
    hex: ['00000000020000000000fffff1ffffff00000000', '0b000100636c7361637400', '00'],
  }),
  golden({
    command:
      'tc filter add dev v0 ingress protocol all prio 1 u32 match u32 0 0 action mirred egress redirect dev ifb0',
    type: RTM_NEWTFILTER,
    family: u32Message,
    header: { tcm_ifindex: 2, tcm_parent: 0xffff_fff2, tcm_info: 0x0001_0300 },
    attributes: {
      TCA_KIND: 'u32',
      TCA_OPTIONS: {
        TCA_U32_ACT: {
          first: {
            TCA_ACT_KIND: 'mirred',
            TCA_ACT_OPTIONS: {
              TCA_MIRRED_PARMS: {
                index: 0,
                capab: 0,
                action: 4,
                refcnt: 0,
                bindcnt: 0,
                eaction: 1,
                ifindex: 3,
              },
            },
          },
        },
        TCA_U32_SEL: Uint8Array.from([1, 0, 1, ...Buffer.alloc(29)]),
      },
    },
    hex: [
      '000000000200000000000000f2ffffff00030100',
      '0800010075333200',
      '60000200',
      '38000700340001000b0001006d69727265640000',
      '2400028020000200',
      '00000000000000000400000000000000000000000100000003000000',
      '24000500',
      '0100010000000000000000000000000000000000000000000000000000000000',
    ],
  }),
];
