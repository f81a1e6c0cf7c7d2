import type { IpAddress } from '#protocol/address.ts';
import type { Request } from './netlink.ts';
import {
  AF_INET,
  AF_INET6,
  FR_ACT_TO_TBL,
  NLM_F_CREATE,
  NLM_F_EXCL,
  RTM_DELRULE,
  RTM_NEWRULE,
  RTPROT_STATIC,
  ruleMessage,
} from './rtnetlink.ts';

/** Packets from one address are looked up in a routing table (man 8 ip-rule). */
export interface Rule {
  readonly from: IpAddress;
  readonly table: number;
  /** Rules of smaller numbers come first; the main table has 32766. */
  readonly priority: number;
}

/** Adds a rule; EEXIST where there is the same. */
export const ruleAddition = ({ table, ...rule }: Rule): Request => ({
  ...ruleRequest(RTM_NEWRULE, 'RTM_NEWRULE', rule, {
    FRA_TABLE: table,
    FRA_PROTOCOL: RTPROT_STATIC,
  }),
  flags: NLM_F_CREATE | NLM_F_EXCL,
});

/** Removes the rule of this address and priority, whichever table it names; ENOENT when there is none. */
export const ruleRemoval = (rule: Omit<Rule, 'table'>): Request =>
  ruleRequest(RTM_DELRULE, 'RTM_DELRULE', rule, {});

const ruleRequest = (
  type: number,
  operation: string,
  { from, priority }: Omit<Rule, 'table'>,
  more: { readonly FRA_TABLE?: number; readonly FRA_PROTOCOL?: number },
): Request => ({
  type,
  operation,
  subject: `from ${from.toString()}`,
  write: (writer) =>
    ruleMessage.write(
      writer,
      {
        family: from.family === 4 ? AF_INET : AF_INET6,
        src_len: from.family === 4 ? 32 : 128,
        action: FR_ACT_TO_TBL,
      },
      { FRA_SRC: from, FRA_PRIORITY: priority, ...more },
    ),
});
