import { readdirSync, readlinkSync } from 'node:fs';
import koffi from 'koffi';
import {
  be32,
  listOf,
  nested,
  readAttributes,
  type Table,
  text,
  type Values,
  writeAttributes,
} from './codec.ts';
import { checked, isKernelError, KernelError } from './errors.ts';
import * as libc from './libc.ts';
import { Namespace, namespaceIdentity } from './namespace.ts';
import {
  NETLINK_NETFILTER,
  openNetlink,
  retryInterrupted,
  setOption,
  SOL_SOCKET,
} from './netlink-descriptor.ts';
import { subscribe } from './netlink-events.ts';
import { eachMessage, NLMSG_HEADER_BYTES, outcomeOf } from './netlink-message.ts';
import {
  NLM_F_ACK,
  NLM_F_APPEND,
  NLM_F_CREATE,
  NLM_F_DUMP,
  NLM_F_DUMP_INTR,
  NLM_F_REQUEST,
  NLMSG_DONE,
  NLMSG_ERROR,
} from './rtnetlink.ts';
import {
  ELEMENT_LIST,
  readElementTexts,
  type SetDeclaration,
  type SetElement,
  writeElements,
} from './nftset.ts';
import {
  type ListedChain,
  type ListedRule,
  readChain,
  readRule,
  RULE_PLACE,
} from './nft-listing.ts';
import { traced } from './trace.ts';
import { Writer } from './writer.ts';

const LIBRARY = 'libnftables.so.1';
/** nftables/libnftables.h: one line of JSON instead of the language of `nft`. */
const NFT_CTX_OUTPUT_JSON = 1 << 4;

// linux/netfilter/nfnetlink.h and nf_tables.h.
const NFNL_MSG_BATCH_BEGIN = 0x10;
const NFNL_MSG_BATCH_END = 0x11;
const NFNL_SUBSYS_NFTABLES = 10;
const NFT_MSG_NEWTABLE = NFNL_SUBSYS_NFTABLES << 8;
const NFT_MSG_DELTABLE = NFT_MSG_NEWTABLE | 2;
const NFT_MSG_NEWCHAIN = NFT_MSG_NEWTABLE | 3;
const NFT_MSG_GETCHAIN = NFT_MSG_NEWTABLE | 4;
const NFT_MSG_DELCHAIN = NFT_MSG_NEWTABLE | 5;
const NFT_MSG_NEWRULE = NFT_MSG_NEWTABLE | 6;
const NFT_MSG_GETRULE = NFT_MSG_NEWTABLE | 7;
const NFT_MSG_DELRULE = NFT_MSG_NEWTABLE | 8;
const NFT_MSG_NEWSETELEM = NFT_MSG_NEWTABLE | 12;
const NFT_MSG_GETSETELEM = NFT_MSG_NEWTABLE | 13;
const NFT_MSG_DELSETELEM = NFT_MSG_NEWTABLE | 14;
const NFT_TABLE_F_OWNER = 0x2;
const NFT_TABLE_F_PERSIST = 0x4;
const TABLE = { NFTA_TABLE_NAME: text(1), NFTA_TABLE_FLAGS: be32(2) } as const satisfies Table;
const NFT_MSG_NEWGEN = NFT_MSG_NEWTABLE | 15;
const NFNLGRP_NFTABLES = 7;
/** Elements in one message: an attribute holds 64 KiB. */
const MAX_ELEMENTS = 256;
/** NF_NETDEV_… of linux/netfilter.h. */
const HOOKS = { ingress: 0, egress: 1 } as const;
/** Before everybody else's chains, so that no other rule spends time on frames that are dropped here. */
const DEVICE_HOOK_PRIORITY = -300;
const NF_ACCEPT = 1;
const NFT_REG_VERDICT = 0;
const NFT_GOTO = -4;
const CHAIN = {
  NFTA_CHAIN_TABLE: text(1),
  NFTA_CHAIN_NAME: text(3),
  NFTA_CHAIN_HOOK: nested(
    4,
    { NFTA_HOOK_HOOKNUM: be32(1), NFTA_HOOK_PRIORITY: be32(2), NFTA_HOOK_DEV: text(3) },
    { flagged: true },
  ),
  NFTA_CHAIN_POLICY: be32(5),
  NFTA_CHAIN_TYPE: text(7),
} as const satisfies Table;
/** A verdict as data of the expression `immediate`. */
const IMMEDIATE = {
  NFTA_IMMEDIATE_DREG: be32(1),
  NFTA_IMMEDIATE_DATA: nested(
    2,
    {
      NFTA_DATA_VERDICT: nested(
        2,
        { NFTA_VERDICT_CODE: be32(1), NFTA_VERDICT_CHAIN: text(2) },
        { flagged: true },
      ),
    },
    { flagged: true },
  ),
} as const satisfies Table;
const RULE = {
  NFTA_RULE_TABLE: text(1),
  NFTA_RULE_CHAIN: text(2),
  NFTA_RULE_EXPRESSIONS: listOf(4, 1, {
    NFTA_EXPR_NAME: text(1),
    NFTA_EXPR_DATA: nested(2, IMMEDIATE, { flagged: true }),
  }),
} as const satisfies Table;
const FAMILIES = { inet: 1, ip: 2, netdev: 5, bridge: 7, ip6: 10 } as const;
const AF_NETLINK = 16;
const SO_PROTOCOL = 38;
const SO_DOMAIN = 39;
const SO_SNDBUFFORCE = 32;
const MIN_SEND_BUFFER = 256 * 1024;
/** struct sockaddr_nl: family u16, padding, port u32, groups u32. */
const SOCKADDR_BYTES = 12;
/** An answer may repeat the message that it is about, which may be the largest one. */
const RECEIVE_BYTES = 128 * 1024;
const MSG_DONTWAIT = 0x40;
const EIO = 5;
const EAGAIN = 11;
const NFGENMSG_BYTES = 4;
/** How often a set is read, at most, when it changes during the reading. */
const MAX_READINGS = 5;

export interface NftTable {
  readonly family: keyof typeof FAMILIES;
  readonly name: string;
}

/**
 * A base chain on a single device, in a table of the netdev family. Its one rule sends all frames to another chain.
 * Its hook names the device, so it cannot be part of rules that are the same on every host. `renew` replaces the rules
 * of a chain that exists, without a moment in which a frame meets none or both. To delete a chain and add it again in
 * one transaction is no such exchange: while the kernel ends the transaction, both are hooked, and a frame meets both.
 */
export type DeviceChainChange = {
  readonly table: NftTable;
  readonly chain: string;
} & (
  | ({ readonly action: 'add'; readonly goto: string } & DeviceHook)
  | { readonly action: 'renew'; readonly goto: string }
  | { readonly action: 'delete' }
);

/** Where a base chain on a single device is hooked. */
export interface DeviceHook {
  readonly hook: keyof typeof HOOKS;
  readonly device: string;
}

/** Elements to add to a set or a map, or to delete from it; `flush` deletes all of its elements. */
export interface ElementChange {
  readonly action: 'add' | 'delete' | 'flush';
  readonly table: NftTable;
  readonly set: string;
  readonly declaration: SetDeclaration;
  readonly elements: readonly SetElement[];
}

/**
 * A ruleset that libnftables or the kernel refused. `reason` is the library's own text, which does not tell the line: for
 * what it refuses itself, libnftables 1.0.6 shows the first one.
 */
export class NftablesError extends Error {
  readonly code = 'NFTABLES';
  readonly reason: string;

  constructor(reason: string, commands: string) {
    const { length: lines } = commands.trim().split('\n');
    const where = lines === 1 ? 'in' : `in one of ${lines} lines that begin with`;
    super(`nftables: ${reason} (${where}: ${excerpt(commands)})`);
    this.name = 'NftablesError';
    this.reason = reason;
  }
}

/** The library is not installed, or this kernel or process may not use nftables. */
export class NftablesUnavailable extends Error {
  readonly code = 'NFTABLES_UNAVAILABLE';

  constructor(reason: string, cause: unknown) {
    super(`nftables cannot be used: ${reason}`, { cause });
    this.name = 'NftablesUnavailable';
  }
}

/**
 * libnftables (man 3 libnftables) with one context for the life of the object, for the network namespace in which it
 * was opened. Calls are synchronous, 0.1 to 0.2 ms for a few elements.
 */
export class Nftables implements Disposable {
  readonly #library: Library;
  readonly #context: unknown;
  /** The netlink socket inside the context. The kernel ties the ownership of tables to it. */
  readonly #fd: number;
  readonly #received = Buffer.alloc(RECEIVE_BYTES);
  #listing: unknown;
  #sequence = 0;
  /** Its size in bytes, since this object has enlarged it. */
  #sendBuffer = 0;

  private constructor(library: Library, context: unknown, fd: number) {
    this.#library = library;
    this.#context = context;
    this.#fd = fd;
  }

  /** NftablesUnavailable if there is no library, no CAP_NET_ADMIN or no nf_tables. */
  static open(): Nftables {
    const library = loadLibrary();
    // The library ends the process when it gets no socket, so a socket is tried first.
    try {
      openNetlink(undefined, () => {}, NETLINK_NETFILTER).close();
    } catch (error) {
      throw new NftablesUnavailable('this kernel has no netfilter', error);
    }
    const before = new Set(netfilterSockets());
    const context = library.newContext(0);
    const fd = netfilterSockets().find((one) => !before.has(one));
    if (context === null || fd === undefined) {
      throw new NftablesUnavailable('libnftables made no context', undefined);
    }
    library.bufferOutput(context);
    library.bufferErrors(context);
    return new Nftables(library, context, fd);
  }

  /** Runs commands in the language of `nft` (man 8 nft) as one transaction; NftablesError when one is refused. */
  run(commands: string, subject = excerpt(commands)): void {
    traced('nft', subject, () => this.#run(this.#context, commands));
  }

  /**
   * Answers a `list` command with the elements of its `nftables` array (man 5 libnftables-json); null when the object
   * does not exist.
   */
  list(command: string): Readonly<Record<string, unknown>>[] | null {
    // A second context, because libnftables 1.0.6 crashes when one context is used for both text and JSON.
    this.#listing ??= this.#newListing();
    let output: string;
    try {
      output = this.#run(this.#listing, command);
    } catch (error) {
      if (error instanceof NftablesError && error.reason.includes('No such file')) return null;
      throw error;
    }
    // With objects that it cannot put into JSON, the library has answered nothing at all, and no error.
    if (output.trim() === '') throw new NftablesError('it answered nothing', command);
    const parsed: unknown = JSON.parse(output);
    if (typeof parsed !== 'object' || parsed === null || !('nftables' in parsed)) return [];
    const { nftables } = parsed;
    return Array.isArray(nftables) ? nftables.filter(isObject) : [];
  }

  /**
   * Makes tables unless they exist. From Linux 6.9 on, and unless `exclusive` is false, this process becomes their
   * owner: nobody else can change or flush them, they stay when the process ends, and the next process takes them
   * over. True when this process is the owner.
   */
  makeTables(tables: readonly NftTable[], { exclusive = true } = {}): boolean {
    if (exclusive) {
      try {
        this.#makeTables(tables, NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST);
        return true;
      } catch (error) {
        if (!isKernelError(error, 'EOPNOTSUPP', 'EINVAL')) throw error;
      }
    }
    this.#makeTables(tables, 0);
    return false;
  }

  /** Deletes a table with all that it has. Success when there is none. */
  deleteTable({ family, name }: NftTable): void {
    const write = (writer: Writer): void =>
      writeAttributes(writer, TABLE, { NFTA_TABLE_NAME: name });
    const subject = `${family} ${name}`;
    try {
      this.#transaction('NFT_MSG_DELTABLE', [
        { type: NFT_MSG_DELTABLE, flags: 0, family, subject, write },
      ]);
    } catch (error) {
      if (!isKernelError(error, 'ENOENT')) throw error;
    }
  }

  /**
   * Changes elements and chains of devices, in the order given, in one transaction. Adding an element that exists is
   * success. KernelError ENOENT: an element or chain to be deleted, a set, or (before Linux 6.16) a device does not
   * exist.
   */
  change(changes: readonly (ElementChange | DeviceChainChange)[]): void {
    const messages = changes.flatMap((change) =>
      'chain' in change ? chainMessages(change) : elementMessages(change),
    );
    if (messages.length > 0) this.#transaction('nft transaction', messages);
  }

  /** Reads a set or map: texts as `elementTexts` makes them; null when the set does not exist. */
  elements({ family, name }: NftTable, set: string): string[] | null {
    try {
      const bodies = this.#dump({
        operation: 'NFT_MSG_GETSETELEM',
        type: NFT_MSG_GETSETELEM,
        family,
        subject: `${family} ${name} ${set}`,
        write: (writer) =>
          writeAttributes(writer, ELEMENT_LIST, {
            NFTA_SET_ELEM_LIST_TABLE: name,
            NFTA_SET_ELEM_LIST_SET: set,
          }),
        read: readElementTexts,
      });
      return bodies.flat();
    } catch (error) {
      if (isKernelError(error, 'ENOENT')) return null;
      throw error;
    }
  }

  /**
   * The base chains of a table of the netdev family, by name. Undefined: one that is hooked otherwise than `change` hooks
   * a chain on a single device. libnftables 1.0.6 has no JSON of the device, nor of a table without its elements.
   */
  deviceChains({ family, name }: NftTable): Map<string, DeviceHook | undefined> {
    const chains = this.#dump({
      operation: 'NFT_MSG_GETCHAIN',
      type: NFT_MSG_GETCHAIN,
      family,
      subject: `${family} ${name}`,
      write: () => {},
      read: (attributes) => readAttributes(CHAIN, attributes),
    });
    return new Map(
      chains
        .filter((chain) => chain.NFTA_CHAIN_TABLE === name && chain.NFTA_CHAIN_HOOK !== undefined)
        .map((chain) => [chain.NFTA_CHAIN_NAME ?? '', deviceHookOf(chain)]),
    );
  }

  /** The chains of all tables of a family, whoever has made them. */
  chains(family: 'ip' | 'ip6' | 'inet'): ListedChain[] {
    return this.#dump({
      operation: 'NFT_MSG_GETCHAIN',
      type: NFT_MSG_GETCHAIN,
      family,
      subject: family,
      write: () => {},
      read: readChain,
    });
  }

  /** The rules of a table, whoever has made it; none if there is no such table. */
  rules({ family, name }: NftTable): ListedRule[] {
    const rules = this.#dump({
      operation: 'NFT_MSG_GETRULE',
      type: NFT_MSG_GETRULE,
      family,
      subject: `${family} ${name}`,
      write: (writer) => writeAttributes(writer, RULE_PLACE, { NFTA_RULE_TABLE: name }),
      read: readRule,
    });
    return rules.filter(({ table }) => table === name);
  }

  /** Calls back after each transaction of somebody else's, until disposed. Keeps the process alive. */
  onForeignChange(callback: () => void): Disposable {
    const address = Buffer.alloc(SOCKADDR_BYTES);
    checked(libc.getsockname(this.#fd, address, [address.length]), 'getsockname', 'nftables');
    const ownPort = address.readUInt32LE(4);
    return subscribe(
      [NFNLGRP_NFTABLES],
      {
        // NEWGEN ends each transaction, and carries the port of the socket that asked for it.
        onMessage: ({ type, port }) => {
          if (type === NFT_MSG_NEWGEN && port !== ownPort) callback();
        },
        onOverrun: callback,
      },
      { protocol: NETLINK_NETFILTER },
    );
  }

  [Symbol.dispose](): void {
    this.#library.freeContext(this.#context);
    if (this.#listing !== undefined) this.#library.freeContext(this.#listing);
  }

  #newListing(): unknown {
    const context = this.#library.newContext(0);
    this.#library.bufferOutput(context);
    this.#library.bufferErrors(context);
    this.#library.setOutput(context, NFT_CTX_OUTPUT_JSON);
    return context;
  }

  #run(context: unknown, commands: string): string {
    const { runCommands, output, errors } = this.#library;
    const failed = runCommands(context, commands) !== 0;
    const said = output(context);
    if (failed) throw new NftablesError(reasonOf(errors(context)), commands);
    return said;
  }

  #makeTables(tables: readonly NftTable[], flags: number): void {
    const messages = tables.map(({ family, name }): Message => ({
      type: NFT_MSG_NEWTABLE,
      flags: NLM_F_CREATE,
      family,
      subject: `${family} ${name}`,
      write: (writer) =>
        writeAttributes(writer, TABLE, { NFTA_TABLE_NAME: name, NFTA_TABLE_FLAGS: flags }),
    }));
    this.#transaction('NFT_MSG_NEWTABLE', messages);
  }

  /**
   * Sends messages over the library's own socket, because the kernel knows the owner of a table by the socket's port, and
   * libnftables 1.0.6 cannot ask for ownership. The kernel does all of them or none; the first error is thrown.
   */
  #transaction(operation: string, messages: readonly Message[]): void {
    const [head] = messages;
    traced(operation, head?.subject ?? '', () => {
      const writer = new Writer();
      const edge = { family: 0, resource: NFNL_SUBSYS_NFTABLES };
      const asked = new Map<number, Message>();
      const first = this.#frame(writer, { type: NFNL_MSG_BATCH_BEGIN, flags: 0, ...edge });
      for (const [index, message] of messages.entries()) {
        // Only the last message asks for an answer. A refusal is answered whatever the flags.
        const flags = message.flags | (index === messages.length - 1 ? NLM_F_ACK : 0);
        const family = FAMILIES[message.family];
        const frame = { type: message.type, flags, family, resource: 0, write: message.write };
        asked.set(this.#frame(writer, frame), message);
      }
      this.#frame(writer, { type: NFNL_MSG_BATCH_END, flags: 0, ...edge });
      // A transaction is one datagram, and has to fit into the socket's buffer. FORCE passes net.core.wmem_max.
      this.#growSendBuffer(writer.length * 2);
      retryInterrupted(() =>
        checked(libc.send(this.#fd, writer.buffer, writer.length, 0), operation, 'send'),
      );
      this.#collect(operation, first, asked);
    });
  }

  /** Reads all objects of a kind, again when they change meanwhile. KernelError: the kernel's own. */
  #dump<T>(question: Dump<T>): T[] {
    for (let reading = 1; ; reading += 1) {
      const { found, whole } = this.#dumpOnce(question);
      if (whole || reading === MAX_READINGS) return found;
    }
  }

  #dumpOnce<T>(question: Dump<T>): { found: T[]; whole: boolean } {
    const { operation, subject, type, write, read } = question;
    const writer = new Writer();
    const family = FAMILIES[question.family];
    const frame = { type, flags: NLM_F_DUMP, family, resource: 0, write };
    const sequence = this.#frame(writer, frame);
    retryInterrupted(() =>
      checked(libc.send(this.#fd, writer.buffer, writer.length, 0), operation, subject),
    );
    const found: T[] = [];
    let errno: number | undefined;
    let whole = true;
    while (errno === undefined) {
      const length = this.#receive(operation);
      if (length === 0) throw new Unanswered({ operation, subject, errno: EIO });
      eachMessage(this.#received.subarray(0, length), (message) => {
        if (message.sequence !== sequence) return;
        if ((message.flags & NLM_F_DUMP_INTR) !== 0) whole = false;
        const ends = message.type === NLMSG_DONE || message.type === NLMSG_ERROR;
        if (ends) errno = outcomeOf(message).errno;
        else found.push(read(message.body.subarray(NFGENMSG_BYTES)));
      });
    }
    if (errno !== 0) throw new KernelError({ operation, subject, errno });
    return { found, whole };
  }

  #growSendBuffer(bytes: number): void {
    if (bytes <= this.#sendBuffer) return;
    this.#sendBuffer = Math.max(MIN_SEND_BUFFER, bytes);
    setOption(this.#fd, SOL_SOCKET, SO_SNDBUFFORCE, this.#sendBuffer);
  }

  #frame(
    writer: Writer,
    frame: {
      readonly type: number;
      readonly flags: number;
      readonly family: number;
      readonly resource: number;
      readonly write?: (writer: Writer) => void;
    },
  ): number {
    this.#sequence += 1;
    const start = writer.reserve(NLMSG_HEADER_BYTES);
    writer.patchU16(start + 4, frame.type);
    writer.patchU16(start + 6, NLM_F_REQUEST | frame.flags);
    writer.patchU32(start + 8, this.#sequence);
    // struct nfgenmsg: family, version, resource in network order.
    writer.u8(frame.family);
    writer.u8(0);
    writer.be16(frame.resource);
    frame.write?.(writer);
    writer.patchU32(start, writer.length - start);
    return this.#sequence;
  }

  /**
   * Reads all answers, also after an error, so that the library does not find them on the same socket. Answers to
   * messages before `first`, the first one of this transaction, were left by earlier calls.
   */
  #collect(operation: string, first: number, asked: ReadonlyMap<number, Message>): void {
    const failures: KernelError[] = [];
    let answered = false;
    for (let length = this.#receive(operation); length > 0; length = this.#receive(operation)) {
      eachMessage(this.#received.subarray(0, length), (message) => {
        if (message.type !== NLMSG_ERROR || message.sequence < first) return;
        answered = true;
        const { errno } = outcomeOf(message);
        if (errno === 0) return;
        const subject = asked.get(message.sequence)?.subject ?? 'transaction';
        failures.push(new KernelError({ operation, subject, errno }));
      });
    }
    const [failure] = failures;
    if (failure !== undefined) throw failure;
    if (!answered) throw new Unanswered({ operation, subject: 'no answer', errno: EIO });
  }

  /** One datagram; 0 when there is none. The kernel has answered when `send` returns, so none means the end. */
  #receive(operation: string): number {
    return retryInterrupted(() => {
      const length = libc.recv(this.#fd, this.#received, RECEIVE_BYTES, MSG_DONTWAIT);
      if (length >= 0) return length;
      const errno = libc.errno();
      if (errno === EAGAIN) return 0;
      throw new Unanswered({ operation, subject: 'recv', errno });
    });
  }
}

/** The kernel's answer could not be read: the transaction may have been done or not. */
export class Unanswered extends KernelError {}

interface Dump<T> extends Omit<Message, 'flags'> {
  readonly operation: string;
  /** Of one message: its attributes. */
  readonly read: (attributes: Buffer) => T;
}

interface Message {
  readonly type: number;
  readonly flags: number;
  readonly family: keyof typeof FAMILIES;
  readonly subject: string;
  readonly write: (writer: Writer) => void;
}

function elementMessages(change: ElementChange): Message[] {
  const { action, table, set, declaration, elements } = change;
  // A deletion without elements deletes all of them.
  const parts = action === 'flush' ? [[]] : chunks(elements, MAX_ELEMENTS);
  return parts.map((some) => ({
    type: action === 'add' ? NFT_MSG_NEWSETELEM : NFT_MSG_DELSETELEM,
    flags: action === 'add' ? NLM_F_CREATE : 0,
    family: table.family,
    subject: `${table.family} ${table.name} ${set}`,
    write: (writer) => {
      writeAttributes(writer, ELEMENT_LIST, {
        NFTA_SET_ELEM_LIST_TABLE: table.name,
        NFTA_SET_ELEM_LIST_SET: set,
      });
      if (some.length > 0) writeElements(writer, declaration, some);
    },
  }));
}

function chainMessages(change: DeviceChainChange): Message[] {
  const { table, chain } = change;
  const { family, name } = table;
  const message = { family, subject: `${family} ${name} ${chain}` };
  const names = { NFTA_CHAIN_TABLE: name, NFTA_CHAIN_NAME: chain };
  if (change.action === 'delete') {
    const write = (writer: Writer): void => writeAttributes(writer, CHAIN, names);
    return [{ ...message, type: NFT_MSG_DELCHAIN, flags: 0, write }];
  }
  const { goto } = change;
  const NFTA_VERDICT = { NFTA_VERDICT_CODE: NFT_GOTO, NFTA_VERDICT_CHAIN: goto };
  const rule: Message = {
    ...message,
    type: NFT_MSG_NEWRULE,
    flags: NLM_F_CREATE | NLM_F_APPEND,
    write: (writer) =>
      writeAttributes(writer, RULE, {
        NFTA_RULE_TABLE: name,
        NFTA_RULE_CHAIN: chain,
        NFTA_RULE_EXPRESSIONS: [
          {
            NFTA_EXPR_NAME: 'immediate',
            NFTA_EXPR_DATA: {
              NFTA_IMMEDIATE_DREG: NFT_REG_VERDICT,
              NFTA_IMMEDIATE_DATA: { NFTA_DATA_VERDICT: NFTA_VERDICT },
            },
          },
        ],
      }),
  };
  if (change.action === 'renew') {
    // Without a handle: all rules of the chain.
    const write = (writer: Writer): void =>
      writeAttributes(writer, RULE, { NFTA_RULE_TABLE: name, NFTA_RULE_CHAIN: chain });
    return [{ ...message, type: NFT_MSG_DELRULE, flags: 0, write }, rule];
  }
  const { hook, device } = change;
  const NFTA_CHAIN_HOOK = {
    NFTA_HOOK_HOOKNUM: HOOKS[hook],
    NFTA_HOOK_PRIORITY: DEVICE_HOOK_PRIORITY,
    NFTA_HOOK_DEV: device,
  };
  return [
    {
      ...message,
      type: NFT_MSG_NEWCHAIN,
      flags: NLM_F_CREATE,
      write: (writer) =>
        writeAttributes(writer, CHAIN, {
          ...names,
          NFTA_CHAIN_HOOK,
          NFTA_CHAIN_POLICY: NF_ACCEPT,
          NFTA_CHAIN_TYPE: 'filter',
        }),
    },
    rule,
  ];
}

function deviceHookOf(chain: Values<typeof CHAIN>): DeviceHook | undefined {
  const { NFTA_CHAIN_TYPE: type, NFTA_CHAIN_POLICY: policy, NFTA_CHAIN_HOOK: place } = chain;
  const { NFTA_HOOK_DEV: device, NFTA_HOOK_HOOKNUM: number, NFTA_HOOK_PRIORITY } = place ?? {};
  if (type !== 'filter' || policy !== NF_ACCEPT || device === undefined) return undefined;
  // Read as a number without a sign.
  if (NFTA_HOOK_PRIORITY !== DEVICE_HOOK_PRIORITY >>> 0) return undefined;
  if (number === HOOKS.ingress) return { hook: 'ingress', device };
  return number === HOOKS.egress ? { hook: 'egress', device } : undefined;
}

function chunks<T>(all: readonly T[], size: number): T[][] {
  const parts: T[][] = [];
  for (let at = 0; at < all.length; at += size) parts.push(all.slice(at, at + size));
  return parts;
}

interface Library {
  readonly newContext: (flags: number) => unknown;
  readonly freeContext: (context: unknown) => void;
  readonly bufferOutput: (context: unknown) => number;
  readonly bufferErrors: (context: unknown) => number;
  readonly runCommands: (context: unknown, commands: string) => number;
  readonly output: (context: unknown) => string;
  readonly errors: (context: unknown) => string;
  readonly setOutput: (context: unknown, flags: number) => void;
}

let loaded: Library | undefined;

/** Loads the library on first use, so that the agent also runs without it. */
function loadLibrary(): Library {
  if (loaded !== undefined) return loaded;
  let library: ReturnType<typeof koffi.load>;
  try {
    library = koffi.load(LIBRARY);
  } catch (error) {
    throw new NftablesUnavailable(`${LIBRARY} is missing: apt-get install libnftables1`, error);
  }
  loaded = {
    newContext: library.func('void *nft_ctx_new(uint32_t flags)'),
    freeContext: library.func('void nft_ctx_free(void *context)'),
    bufferOutput: library.func('int nft_ctx_buffer_output(void *context)'),
    bufferErrors: library.func('int nft_ctx_buffer_error(void *context)'),
    runCommands: library.func('int nft_run_cmd_from_buffer(void *context, const char *commands)'),
    output: library.func('const char *nft_ctx_get_output_buffer(void *context)'),
    errors: library.func('const char *nft_ctx_get_error_buffer(void *context)'),
    setOutput: library.func('void nft_ctx_output_set_flags(void *context, unsigned int flags)'),
  };
  return loaded;
}

/**
 * Descriptors of this process that are NETLINK_NETFILTER sockets in the network namespace of the calling thread. Other
 * threads open and close such sockets in other namespaces at the same time.
 */
function netfilterSockets(): number[] {
  return readdirSync('/proc/self/fd')
    .map(Number)
    .filter((fd) => isNetfilterSocket(fd) && isOfThisNamespace(fd));
}

function isNetfilterSocket(fd: number): boolean {
  try {
    if (!readlinkSync(`/proc/self/fd/${fd}`).startsWith('socket:')) return false;
  } catch {
    return false; // the descriptor of the folder itself
  }
  const value = Buffer.alloc(4);
  const length = [value.length];
  if (libc.getsockopt(fd, SOL_SOCKET, SO_DOMAIN, value, length) < 0) return false;
  if (value.readInt32LE(0) !== AF_NETLINK) return false;
  if (libc.getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, value, length) < 0) return false;
  return value.readInt32LE(0) === NETLINK_NETFILTER;
}

/** Whether a socket lies in the network namespace of the calling thread; false for one that has been closed. */
function isOfThisNamespace(fd: number): boolean {
  try {
    using namespace = Namespace.ofSocket(fd);
    return namespace.identity === namespaceIdentity('/proc/thread-self/ns/net');
  } catch (error) {
    // Another thread has closed it, and the number may be another file's by now.
    if (isKernelError(error, 'EBADF', 'ENOTTY')) return false;
    // Without CAP_NET_ADMIN the first command is refused, with a clear error.
    if (isKernelError(error, 'EPERM')) return true;
    throw error;
  }
}

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null;

/** The first line of an error: the lines after it repeat the command with carets below the place. */
const reasonOf = (said: string): string => said.split('\n')[0] ?? said;

const EXCERPT = 80;
const excerpt = (commands: string): string => {
  const line = commands.trim().split('\n')[0] ?? '';
  return line.length <= EXCERPT ? line : `${line.slice(0, EXCERPT)}…`;
};
