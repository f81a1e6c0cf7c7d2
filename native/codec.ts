import { IpAddress, MacAddress } from '#protocol/address.ts';
import { aligned, CodecError, NLA_HEADER_BYTES, type Writer } from './writer.ts';

// Wire formats of netlink (man 7 netlink, linux/netlink.h), declared as tables. A table names each attribute as the
// kernel does and says of what kind it is; encoder, decoder and TypeScript type follow from the table. Integers are
// in the host's byte order, which is little-endian on every machine that we run on, except those declared as be16 or
// be32.

const NLA_F_NESTED = 0x8000;
const NLA_TYPE_MASK = 0x3fff;

/** One kind of attribute: its number in its table, and how its payload is written and read. */
export interface Attribute<Value> {
  readonly type: number;
  /** True: NLA_F_NESTED is set in the type. */
  readonly flagged?: boolean;
  write(writer: Writer, value: Value): void;
  /** Undefined if the payload is not of this kind: the attribute is skipped then. */
  read(payload: Buffer): Value | undefined;
}

/** Attributes by the kernel's names. */
export type Table = Readonly<Record<string, Attribute<unknown>>>;

/** The values of a table's attributes; each may be absent. */
export type Values<T extends Table> = {
  -readonly [Name in keyof T]?: T[Name] extends Attribute<infer Value> ? Value | undefined : never;
};

export const u8 = (type: number): Attribute<number> => ({
  type,
  write: (writer, value) => writer.u8(value),
  read: (payload) => (payload.length >= 1 ? payload.readUInt8(0) : undefined),
});

export const u16 = (type: number): Attribute<number> => ({
  type,
  write: (writer, value) => writer.u16(value),
  read: (payload) => (payload.length >= 2 ? payload.readUInt16LE(0) : undefined),
});

/** Network byte order: UDP ports of tunnels. */
export const be16 = (type: number): Attribute<number> => ({
  type,
  write: (writer, value) => writer.be16(value),
  read: (payload) => (payload.length >= 2 ? payload.readUInt16BE(0) : undefined),
});

export const u32 = (type: number): Attribute<number> => ({
  type,
  write: (writer, value) => writer.u32(value),
  read: (payload) => (payload.length >= 4 ? payload.readUInt32LE(0) : undefined),
});

/** Network byte order: numbers of netfilter. */
export const be32 = (type: number): Attribute<number> => ({
  type,
  write: (writer, value) => writer.be32(value),
  read: (payload) => (payload.length >= 4 ? payload.readUInt32BE(0) : undefined),
});

export const u64 = (type: number): Attribute<bigint> => ({
  type,
  write: (writer, value) => {
    const bytesOfIt = Buffer.alloc(8);
    bytesOfIt.writeBigUInt64LE(value);
    writer.raw(bytesOfIt);
  },
  read: (payload) => (payload.length >= 8 ? payload.readBigUInt64LE(0) : undefined),
});

export const i32 = (type: number): Attribute<number> => ({
  type,
  write: (writer, value) => writer.i32(value),
  read: (payload) => (payload.length >= 4 ? payload.readInt32LE(0) : undefined),
});

function readText(payload: Buffer): string {
  const end = payload.indexOf(0);
  return payload.toString('utf8', 0, end < 0 ? payload.length : end);
}

/** Text with a terminating zero on the wire. */
export const text = (type: number): Attribute<string> => ({
  type,
  write: (writer, value) => {
    writer.utf8(value);
    writer.u8(0);
  },
  read: readText,
});

/** Text without a terminating zero on the wire; read with or without. */
export const unterminated = (type: number): Attribute<string> => ({
  type,
  write: (writer, value) => writer.utf8(value),
  read: readText,
});

export const bytes = (type: number): Attribute<Uint8Array> => ({
  type,
  write: (writer, value) => writer.raw(value),
  read: (payload) => Uint8Array.from(payload),
});

export const mac = (type: number): Attribute<MacAddress> => ({
  type,
  write: (writer, value) => writer.raw(value.toBytes()),
  read: (payload) => (payload.length === 6 ? MacAddress.fromBytes(payload) : undefined),
});

/** An IPv4 or IPv6 address; its length says which. */
export const ip = (type: number): Attribute<IpAddress> => ({
  type,
  write: (writer, value) => writer.raw(value.toBytes()),
  read: (payload) =>
    payload.length === 4 || payload.length === 16 ? IpAddress.fromBytes(payload) : undefined,
});

/**
 * Attributes within an attribute. NLA_F_NESTED is set where the declaration asks for it: link attributes are
 * older than the flag and go without, as `ip` sends them.
 */
export const nested = <T extends Table>(
  type: number,
  table: T,
  { flagged = false } = {},
): Attribute<Values<T>> => ({
  type,
  flagged,
  write: (writer, values) => writeAttributes(writer, table, values),
  read: (payload) => readAttributes(table, payload),
});

/** Attributes of one type repeated within an attribute: IFLA_VFINFO_LIST. */
export const listOf = <T extends Table>(
  type: number,
  elementType: number,
  table: T,
): Attribute<Values<T>[]> => ({
  type,
  write: (writer, list) => {
    for (const values of list) {
      writer.attribute(elementType, () => writeAttributes(writer, table, values));
    }
  },
  read: (payload) => {
    const list: Values<T>[] = [];
    eachAttribute(payload, (element, start, end) => {
      if (element === elementType) list.push(readAttributes(table, payload.subarray(start, end)));
    });
    return list;
  },
});

const FIELD_BYTES = {
  u8: 1,
  u16: 2,
  be16: 2,
  u32: 4,
  i32: 4,
  pad1: 1,
  pad2: 2,
  mac32: 32,
} as const;
type FieldKind = keyof typeof FIELD_BYTES;
type FieldValue<Kind> = Kind extends 'mac32' ? MacAddress : number;

/** Fields of a C struct in order; `pad…` fields are zero on the wire and absent from the value. */
export type StructFields = Readonly<Record<string, FieldKind>>;

export type StructValue<Fields extends StructFields> = {
  -readonly [
    Name in keyof Fields as Fields[Name] extends `pad${string}` ? never : Name
  ]: FieldValue<Fields[Name]>;
};

export interface Struct<Fields extends StructFields> {
  readonly size: number;
  /** Fields left out are zero. */
  write(writer: Writer, value: Partial<StructValue<Fields>> | StructValue<Fields>): void;
  read(payload: Buffer): StructValue<Fields>;
}

export function struct<Fields extends StructFields>(fields: Fields): Struct<Fields> {
  const layout = Object.entries(fields);
  const size = layout.reduce((sum, [, kind]) => sum + FIELD_BYTES[kind], 0);
  return {
    size,
    write: (writer, value) => {
      const given = value as Readonly<Record<string, unknown>>;
      for (const [name, kind] of layout) writeField(writer, kind, given[name]);
    },
    read: (payload) => {
      if (payload.length < size) throw new CodecError(`${payload.length} bytes are not ${size}`);
      const value: Record<string, unknown> = {};
      let offset = 0;
      for (const [name, kind] of layout) {
        const field = readField(payload, offset, kind);
        if (field !== undefined) value[name] = field;
        offset += FIELD_BYTES[kind];
      }
      return value as StructValue<Fields>;
    },
  };
}

/** An attribute whose payload is a C struct: the VF settings. */
export const structAttribute = <Fields extends StructFields>(
  type: number,
  fields: Fields,
): Attribute<StructValue<Fields>> => {
  const layout = struct(fields);
  return {
    type,
    write: (writer, value) => layout.write(writer, value),
    read: (payload) => (payload.length >= layout.size ? layout.read(payload) : undefined),
  };
};

function writeField(writer: Writer, kind: FieldKind, value: unknown): void {
  if (kind === 'mac32') {
    const padded = new Uint8Array(FIELD_BYTES.mac32);
    if (value instanceof MacAddress) padded.set(value.toBytes());
    writer.raw(padded);
    return;
  }
  const number = typeof value === 'number' ? value : 0;
  switch (kind) {
    case 'u8':
      writer.u8(number);
      break;
    case 'u16':
      writer.u16(number);
      break;
    case 'be16':
      writer.be16(number);
      break;
    case 'u32':
      writer.u32(number);
      break;
    case 'i32':
      writer.i32(number);
      break;
    default:
      writer.reserve(FIELD_BYTES[kind]);
  }
}

function readField(payload: Buffer, offset: number, kind: FieldKind): unknown {
  switch (kind) {
    case 'u8':
      return payload.readUInt8(offset);
    case 'u16':
      return payload.readUInt16LE(offset);
    case 'be16':
      return payload.readUInt16BE(offset);
    case 'u32':
      return payload.readUInt32LE(offset);
    case 'i32':
      return payload.readInt32LE(offset);
    case 'mac32':
      return MacAddress.fromBytes(payload.subarray(offset, offset + 6));
    default:
      return undefined;
  }
}

/** Writes the attributes that have a value, in the order of `values`. */
export function writeAttributes<T extends Table>(
  writer: Writer,
  table: T,
  values: Values<T>,
): void {
  for (const [name, value] of Object.entries(values)) {
    if (value === undefined) continue;
    const attribute = table[name];
    if (attribute === undefined) throw new CodecError(`the table has no ${name}`);
    const type = attribute.flagged === true ? attribute.type | NLA_F_NESTED : attribute.type;
    writer.attribute(type, () => attribute.write(writer, value));
  }
}

const namesByType = new WeakMap<Table, Map<number, string>>();

function namesOf(table: Table): Map<number, string> {
  let names = namesByType.get(table);
  if (names === undefined) {
    names = new Map(Object.entries(table).map(([name, { type }]) => [type, name]));
    namesByType.set(table, names);
  }
  return names;
}

/** Reads attributes. Attributes that the table does not know, or that are not of their declared kind, are skipped. */
export function readAttributes<T extends Table>(table: T, payload: Buffer): Values<T> {
  const names = namesOf(table);
  const values: Record<string, unknown> = {};
  eachAttribute(payload, (type, start, end) => {
    const name = names.get(type);
    if (name === undefined) return;
    const value = table[name]?.read(payload.subarray(start, end));
    if (value !== undefined) values[name] = value;
  });
  return values as Values<T>;
}

/**
 * Walks attributes: their types, and where in the payload their bodies are. CodecError for a header that claims more
 * bytes than there are.
 */
export function eachAttribute(
  payload: Buffer,
  visit: (type: number, start: number, end: number) => void,
): void {
  let offset = 0;
  while (offset + NLA_HEADER_BYTES <= payload.length) {
    const length = payload.readUInt16LE(offset);
    const type = payload.readUInt16LE(offset + 2) & NLA_TYPE_MASK;
    if (length < NLA_HEADER_BYTES || offset + length > payload.length) {
      throw new CodecError(
        `attribute ${type} claims ${length} of ${payload.length - offset} bytes`,
      );
    }
    visit(type, offset + NLA_HEADER_BYTES, offset + length);
    offset += aligned(length);
  }
}

/** A netlink message body: a fixed header and attributes. */
export interface Family<Fields extends StructFields, T extends Table> {
  write(writer: Writer, header: Partial<StructValue<Fields>>, attributes: Values<T>): void;
  read(payload: Buffer): { header: StructValue<Fields>; attributes: Values<T> };
}

export function family<Fields extends StructFields, T extends Table>(
  fields: Fields,
  table: T,
): Family<Fields, T> {
  const header = struct(fields);
  return {
    write: (writer, headerValue, attributes) => {
      header.write(writer, headerValue);
      writeAttributes(writer, table, attributes);
    },
    read: (payload) => ({
      header: header.read(payload),
      attributes: readAttributes(table, payload.subarray(header.size)),
    }),
  };
}
