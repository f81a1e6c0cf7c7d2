import { be32, bytes, eachAttribute, nested, readAttributes, type Table, text } from './codec.ts';

// Chains and rules of tables that may be anybody's (linux/netfilter/nf_tables.h), as far as somebody has to know who lets
// which device through. The kernel's own bytes are read, since libnftables 1.0.6 ends the process on some rules when it
// puts them into JSON.

/** NF_INET_… of linux/netfilter.h, in the families ip, ip6 and inet. */
const NF_INET_FORWARD = 2;
const NF_DROP = 0;
const NF_ACCEPT = 1;
const NFT_REG_VERDICT = 0;
const NFT_CMP_EQ = 0;
const NFTA_LIST_ELEM = 1;
const DEVICE_KEYS = new Map([
  [6, 'iifname'],
  [7, 'oifname'],
] as const);
/** Expressions that let every packet go on to the next one. */
const UNCONDITIONAL: ReadonlySet<string> = new Set(['counter', 'log', 'notrack']);

const CHAIN = {
  NFTA_CHAIN_TABLE: text(1),
  NFTA_CHAIN_NAME: text(3),
  NFTA_CHAIN_HOOK: nested(4, { NFTA_HOOK_HOOKNUM: be32(1) }),
  NFTA_CHAIN_POLICY: be32(5),
} as const satisfies Table;
export const RULE_PLACE = {
  NFTA_RULE_TABLE: text(1),
  NFTA_RULE_CHAIN: text(2),
} as const satisfies Table;
const RULE = { ...RULE_PLACE, NFTA_RULE_EXPRESSIONS: bytes(4) } as const satisfies Table;
const EXPRESSION = { NFTA_EXPR_NAME: text(1), NFTA_EXPR_DATA: bytes(2) } as const satisfies Table;
const META = { NFTA_META_DREG: be32(1), NFTA_META_KEY: be32(2) } as const satisfies Table;
const CMP = {
  NFTA_CMP_SREG: be32(1),
  NFTA_CMP_OP: be32(2),
  NFTA_CMP_DATA: nested(3, { NFTA_DATA_VALUE: bytes(1) }),
} as const satisfies Table;
const IMMEDIATE = {
  NFTA_IMMEDIATE_DREG: be32(1),
  NFTA_IMMEDIATE_DATA: nested(2, {
    NFTA_DATA_VERDICT: nested(2, { NFTA_VERDICT_CODE: be32(1) }),
  }),
} as const satisfies Table;

export interface ListedChain {
  readonly table: string;
  readonly name: string;
  /** Hooked where packets are forwarded. */
  readonly forwards: boolean;
  /** Drops what none of its rules decides. */
  readonly drops: boolean;
}

export interface ListedRule {
  readonly table: string;
  readonly chain: string;
  readonly accepts: boolean;
  readonly conditions: readonly RuleCondition[];
}

/** A device by its name, or by the beginning of it; or something else, which is not read. */
export type RuleCondition =
  | { readonly key: 'iifname' | 'oifname'; readonly name: string; readonly isWhole: boolean }
  | { readonly key: 'other' };

/** Of the attributes of a message NFT_MSG_NEWCHAIN of one of the families ip, ip6 and inet. */
export function readChain(attributes: Buffer): ListedChain {
  const chain = readAttributes(CHAIN, attributes);
  const { NFTA_CHAIN_HOOK: hook, NFTA_CHAIN_POLICY: policy } = chain;
  return {
    table: chain.NFTA_CHAIN_TABLE ?? '',
    name: chain.NFTA_CHAIN_NAME ?? '',
    forwards: hook?.NFTA_HOOK_HOOKNUM === NF_INET_FORWARD,
    drops: policy === NF_DROP,
  };
}

/** Of the attributes of a message NFT_MSG_NEWRULE. */
export function readRule(attributes: Buffer): ListedRule {
  const rule = readAttributes(RULE, attributes);
  const conditions: RuleCondition[] = [];
  let accepts = false;
  /** What the register holds that the next expression may compare. */
  let loaded: Loaded | undefined;
  for (const { name, data } of expressionsIn(rule.NFTA_RULE_EXPRESSIONS)) {
    const before = loaded;
    loaded = name === 'meta' ? loadedBy(data) : undefined;
    if (loaded !== undefined || UNCONDITIONAL.has(name)) continue;
    const verdict = name === 'immediate' ? verdictIn(data) : undefined;
    if (verdict !== undefined) accepts = verdict === NF_ACCEPT;
    else conditions.push((name === 'cmp' && comparedWith(before, data)) || { key: 'other' });
  }
  return {
    table: rule.NFTA_RULE_TABLE ?? '',
    chain: rule.NFTA_RULE_CHAIN ?? '',
    accepts,
    conditions,
  };
}

interface Loaded {
  readonly key: 'iifname' | 'oifname';
  readonly register: number;
}

function expressionsIn(list: Uint8Array | undefined): { name: string; data: Buffer }[] {
  const found: { name: string; data: Buffer }[] = [];
  const payload = Buffer.from(list ?? []);
  eachAttribute(payload, (type, start, end) => {
    if (type !== NFTA_LIST_ELEM) return;
    const expression = readAttributes(EXPRESSION, payload.subarray(start, end));
    const { NFTA_EXPR_NAME: name = '', NFTA_EXPR_DATA: data = [] } = expression;
    found.push({ name, data: Buffer.from(data) });
  });
  return found;
}

function loadedBy(data: Buffer): Loaded | undefined {
  const { NFTA_META_KEY: number, NFTA_META_DREG: register } = readAttributes(META, data);
  const [, key] = [...DEVICE_KEYS].find(([one]) => one === number) ?? [];
  return key === undefined || register === undefined ? undefined : { key, register };
}

/** Names are compared with all bytes of a register, or up to a zero; the beginning of a name with fewer bytes. */
const IFNAMSIZ = 16;

function comparedWith(loaded: Loaded | undefined, data: Buffer): RuleCondition | undefined {
  const { NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA } = readAttributes(CMP, data);
  const value = NFTA_CMP_DATA?.NFTA_DATA_VALUE;
  if (loaded === undefined || value === undefined) return undefined;
  if (NFTA_CMP_SREG !== loaded.register || NFTA_CMP_OP !== NFT_CMP_EQ) return undefined;
  const end = value.indexOf(0);
  const name = Buffer.from(end === -1 ? value : value.subarray(0, end)).toString('utf8');
  return { key: loaded.key, name, isWhole: end !== -1 || value.length >= IFNAMSIZ };
}

function verdictIn(data: Buffer): number | undefined {
  const { NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA } = readAttributes(IMMEDIATE, data);
  if (NFTA_IMMEDIATE_DREG !== NFT_REG_VERDICT) return undefined;
  return NFTA_IMMEDIATE_DATA?.NFTA_DATA_VERDICT?.NFTA_VERDICT_CODE;
}
