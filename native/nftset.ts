import { IpAddress, MacAddress } from '#protocol/address.ts';
import {
  be32,
  bytes as blob,
  listOf,
  nested,
  readAttributes,
  type Table,
  unterminated,
  writeAttributes,
} from './codec.ts';
import { CodecError, type Writer } from './writer.ts';

// Sets and maps of nftables (linux/netfilter/nf_tables.h). One declaration gives both the text that libnftables
// compiles and the bytes of each element. We write elements ourselves: it takes some 30 µs, a fifth of what the library
// needs, and an attach never calls the library, which ends the process on some failures.

/**
 * What a field of a key holds. `th,64,128` and `th,208,48` are bits of the transport header from an offset
 * (target and link-layer address of neighbour discovery), for which nft 1.0.6 has no name.
 */
const FIELDS = {
  ifname: { bytes: 16, name: 'ifname' },
  ether_addr: { bytes: 6, name: 'ether_addr' },
  ipv4_addr: { bytes: 4, name: 'ipv4_addr' },
  ipv6_addr: { bytes: 16, name: 'ipv6_addr' },
  /** The protocol of a frame, ETH_P_…, as a number. */
  ether_type: { bytes: 2, name: 'ether_type' },
  inet_proto: { bytes: 1, name: 'inet_proto' },
  inet_service: { bytes: 2, name: 'inet_service' },
  'th,64,128': { bytes: 16, name: '@th,64,128' },
  'th,208,48': { bytes: 6, name: '@th,208,48' },
} as const;

export type SetField = keyof typeof FIELDS;

/** `ifname`: text. `ether_type`, `inet_proto` and `inet_service`: a number. The others: an address. */
export type SetValue = string | number | IpAddress | MacAddress;

export interface SetDeclaration {
  readonly key: readonly SetField[];
  /** Of a map: what a key stands for. */
  readonly data?: readonly SetField[];
  /** Keys are ranges: elements have an `end`. */
  readonly interval?: boolean;
}

/** One element: a value per field; `end` is the last key of a range, inclusive. */
export interface SetElement {
  readonly key: readonly SetValue[];
  readonly end?: readonly SetValue[];
  readonly data?: readonly SetValue[];
}

/**
 * `{ type ifname . ether_addr; }`, as in `add set bridge volt mac { … }`. With `egress`, `ifname` is the device by which
 * frames leave, not the one by which they come in; only sets with raw keys differ by it.
 */
export function setText(
  { key, data, interval = false }: SetDeclaration,
  { egress = false } = {},
): string {
  const raw = key.some((field) => field.startsWith('th,'));
  const device = egress ? 'oifname' : 'iifname';
  const names = key.map((field) => (raw && field === 'ifname' ? device : FIELDS[field].name));
  const value =
    data === undefined ? '' : ` : ${data.map((field) => FIELDS[field].name).join(' . ')}`;
  const flags = interval ? ' flags interval;' : '';
  return `{ ${raw ? 'typeof' : 'type'} ${names.join(' . ')}${value};${flags} }`;
}

const NFTA_LIST_ELEM = 1;
const NFTA_SET_ELEM_KEY = 1;
const NFTA_SET_ELEM_DATA = 2;
const NFTA_SET_ELEM_KEY_END = 10;
const NFTA_DATA_VALUE = 1;
const NFTA_SET_ELEM_LIST_ELEMENTS = 3;
const NLA_F_NESTED = 0x8000;
const NFT_SET_ELEM_INTERVAL_END = 1;
const ELEMENT = { NFTA_SET_ELEM_FLAGS: be32(3) } as const satisfies Table;
/** Attributes in front of the elements. */
export const ELEMENT_LIST = {
  NFTA_SET_ELEM_LIST_TABLE: unterminated(1),
  NFTA_SET_ELEM_LIST_SET: unterminated(2),
} as const satisfies Table;

/** Writes NFTA_SET_ELEM_LIST_ELEMENTS. A range of one field is two elements, of several fields one. */
export function writeElements(
  writer: Writer,
  declaration: SetDeclaration,
  elements: readonly SetElement[],
): void {
  writer.attribute(NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED, () => {
    for (const element of elements) {
      for (const one of wireElements(declaration, element)) writeElement(writer, one);
    }
  });
}

interface WireElement {
  readonly key: Uint8Array;
  readonly end?: Uint8Array | undefined;
  readonly data?: Uint8Array | undefined;
  readonly flags?: number | undefined;
}

/** What one element is in the kernel: one, or the two ends of a range. */
function wireElements(declaration: SetDeclaration, element: SetElement): WireElement[] {
  const { key, end, data } = element;
  const concatenated = declaration.key.length > 1;
  const last = end === undefined ? undefined : encode(declaration.key, end);
  const first = {
    key: encode(declaration.key, key),
    data: data && declaration.data && encode(declaration.data, data),
    end: concatenated ? last : undefined,
  };
  const after = concatenated || last === undefined ? null : successor(last);
  return after === null ? [first] : [first, { key: after, flags: NFT_SET_ELEM_INTERVAL_END }];
}

function writeElement(writer: Writer, element: WireElement): void {
  const value = (type: number, bytes: Uint8Array | undefined): void => {
    if (bytes === undefined) return;
    writer.attribute(type | NLA_F_NESTED, () => {
      writer.attribute(NFTA_DATA_VALUE, () => writer.raw(bytes));
    });
  };
  writer.attribute(NFTA_LIST_ELEM | NLA_F_NESTED, () => {
    if (element.flags !== undefined) {
      writeAttributes(writer, ELEMENT, { NFTA_SET_ELEM_FLAGS: element.flags });
    }
    value(NFTA_SET_ELEM_KEY, element.key);
    value(NFTA_SET_ELEM_KEY_END, element.end);
    value(NFTA_SET_ELEM_DATA, element.data);
  });
}

const VALUE = { NFTA_DATA_VALUE: blob(NFTA_DATA_VALUE) } as const satisfies Table;
const ELEMENTS = {
  NFTA_SET_ELEM_LIST_ELEMENTS: listOf(NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_LIST_ELEM, {
    NFTA_SET_ELEM_KEY: nested(NFTA_SET_ELEM_KEY, VALUE),
    NFTA_SET_ELEM_DATA: nested(NFTA_SET_ELEM_DATA, VALUE),
    NFTA_SET_ELEM_FLAGS: ELEMENT.NFTA_SET_ELEM_FLAGS,
    NFTA_SET_ELEM_KEY_END: nested(NFTA_SET_ELEM_KEY_END, VALUE),
  }),
} as const satisfies Table;

/** The elements in the attributes of a message NFT_MSG_NEWSETELEM, as texts like those of `elementTexts`. */
export function readElementTexts(attributes: Buffer): string[] {
  const { NFTA_SET_ELEM_LIST_ELEMENTS: elements = [] } = readAttributes(ELEMENTS, attributes);
  return elements.map((element) =>
    elementText({
      key: element.NFTA_SET_ELEM_KEY?.NFTA_DATA_VALUE,
      end: element.NFTA_SET_ELEM_KEY_END?.NFTA_DATA_VALUE,
      data: element.NFTA_SET_ELEM_DATA?.NFTA_DATA_VALUE,
      flags: element.NFTA_SET_ELEM_FLAGS,
    }),
  );
}

/** One element as the kernel keeps it, one text or two for a range. Equal texts: same key and same value. */
export const elementTexts = (declaration: SetDeclaration, element: SetElement): string[] =>
  wireElements(declaration, element).map(elementText);

/** The name in the key of an element, as a text has it, of a set whose only field is `ifname`. */
export function ifnameIn(key: string): string {
  const [name = ''] = Buffer.from(key.split(' ')[0] ?? '', 'hex')
    .toString('utf8')
    .split('\0');
  return name;
}

/** One that the kernel sent may lack anything. */
type ReadElement = Omit<WireElement, 'key'> & { readonly key: Uint8Array | undefined };

function elementText({ key, end, data, flags = 0 }: ReadElement): string {
  const parts = [key, end, data].map((part) => Buffer.from(part ?? []).toString('hex'));
  return `${parts.join(' ')}${(flags & NFT_SET_ELEM_INTERVAL_END) === 0 ? '' : ' end'}`;
}

/** Several fields are each padded to registers of four bytes; a single field is not padded. */
function encode(fields: readonly SetField[], values: readonly SetValue[]): Uint8Array {
  const padded = fields.length > 1;
  const parts = fields.map((field, index) => {
    const { bytes } = FIELDS[field];
    const part = Buffer.alloc(padded ? (bytes + 3) & ~3 : bytes);
    part.set(bytesOf(field, values[index], bytes));
    return part;
  });
  return Buffer.concat(parts);
}

function bytesOf(field: SetField, value: SetValue | undefined, length: number): Uint8Array {
  const bytes = rawBytes(value, length);
  const fits = field === 'ifname' ? bytes.length < length : bytes.length === length;
  if (!fits) throw new CodecError(`${String(value)} is no ${field}`);
  return bytes;
}

function rawBytes(value: SetValue | undefined, length: number): Uint8Array {
  if (value instanceof IpAddress || value instanceof MacAddress) return value.toBytes();
  if (typeof value === 'string') return Buffer.from(value, 'utf8');
  if (value === undefined) throw new CodecError('an element has too few values');
  const bytes = Buffer.alloc(length);
  bytes.writeUIntBE(value, 0, length);
  return bytes;
}

/** The key after this one; null after the last. */
function successor(key: Uint8Array): Uint8Array | null {
  const next = Uint8Array.from(key);
  for (let index = next.length - 1; index >= 0; index -= 1) {
    const byte = next[index] ?? 0;
    next[index] = (byte + 1) & 0xff;
    if (byte !== 0xff) return next;
  }
  return null;
}
