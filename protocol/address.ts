import { hash } from 'node:crypto';
import ipaddr from 'ipaddr.js';

export type Family = 4 | 6;

/** Text or bytes that are no address. The message quotes what was given and, where it helps, what would do. */
export class AddressError extends Error {
  readonly code = 'INVALID_ADDRESS';
  /** The value that was probably meant, ready to be used: `192.0.2.0/24` for `192.0.2.12/24`. */
  readonly suggestion: string | undefined;

  constructor(message: string, suggestion?: string) {
    super(suggestion === undefined ? message : `${message}; did you mean ${suggestion}?`);
    this.name = 'AddressError';
    this.suggestion = suggestion;
  }
}

// ::ffff:0:0/96 without its last 32 bits.
const MAPPED_PREFIX = 0xffffn;
const bitsOf = (family: Family): number => (family === 4 ? 32 : 128);

/** One IPv4 or IPv6 address: a family and a number. IPv4-mapped IPv6 addresses stay IPv6. */
export class IpAddress {
  readonly family: Family;
  readonly value: bigint;

  constructor(family: Family, value: bigint) {
    if (value < 0n || value >> BigInt(bitsOf(family)) !== 0n) {
      throw new AddressError(`${value} is outside IPv${family}`);
    }
    this.family = family;
    this.value = value;
  }

  /**
   * Four decimal parts without leading zeros (elsewhere `010` is eight), or RFC 4291 text without a zone,
   * which means something on one host only.
   */
  static parse(text: string): IpAddress {
    if (ipaddr.IPv4.isValidFourPartDecimal(text)) {
      return IpAddress.fromBytes(Uint8Array.from(ipaddr.IPv4.parse(text).toByteArray()));
    }
    if (isStrictIPv6(text)) {
      return IpAddress.fromBytes(Uint8Array.from(ipaddr.IPv6.parse(text).toByteArray()));
    }
    throw new AddressError(`"${text}" is not an IP address`);
  }

  /** Network byte order, 4 or 16 bytes. */
  static fromBytes(bytes: Uint8Array): IpAddress {
    if (bytes.length !== 4 && bytes.length !== 16) {
      throw new AddressError(`an address has 4 or 16 bytes, not ${bytes.length}`);
    }
    let value = 0n;
    for (const byte of bytes) value = (value << 8n) | BigInt(byte);
    return new IpAddress(bytes.length === 4 ? 4 : 6, value);
  }

  toBytes(): Uint8Array {
    const bytes = new Uint8Array(bitsOf(this.family) / 8);
    let rest = this.value;
    for (let i = bytes.length - 1; i >= 0; i -= 1) {
      bytes[i] = Number(rest & 0xffn);
      rest >>= 8n;
    }
    return bytes;
  }

  /** Canonical text: dotted decimal, or RFC 5952; an IPv4-mapped address ends in dotted decimal (section 5). */
  toString(): string {
    if (this.family === 6 && this.value >> 32n === MAPPED_PREFIX) {
      return `::ffff:${new IpAddress(4, this.value & 0xffff_ffffn).toString()}`;
    }
    return ipaddr.fromByteArray([...this.toBytes()]).toString();
  }

  plus(n: bigint): IpAddress {
    return new IpAddress(this.family, this.value + n);
  }

  /** Negative, zero or positive; IPv4 before IPv6. */
  compare(other: IpAddress): number {
    if (this.family !== other.family) return this.family - other.family;
    if (this.value === other.value) return 0;
    return this.value < other.value ? -1 : 1;
  }

  equals(other: IpAddress): boolean {
    return this.compare(other) === 0;
  }
}

function isStrictIPv6(text: string): boolean {
  if (!text.includes(':') || text.includes('%') || !ipaddr.IPv6.isValid(text)) return false;
  const tail = text.slice(text.lastIndexOf(':') + 1);
  return !tail.includes('.') || ipaddr.IPv4.isValidFourPartDecimal(tail);
}

function parseLength(text: string, family: Family, whole: string): number {
  const length = /^(0|[1-9]\d{0,2})$/.test(text) ? Number(text) : Number.NaN;
  if (!(length <= bitsOf(family))) {
    throw new AddressError(`"${whole}" needs a prefix length of 0 to ${bitsOf(family)}`);
  }
  return length;
}

function splitPrefix(text: string): { address: IpAddress; length: number } {
  const slash = text.indexOf('/');
  if (slash < 0) throw new AddressError(`"${text}" has no prefix length`);
  const address = IpAddress.parse(text.slice(0, slash));
  return { address, length: parseLength(text.slice(slash + 1), address.family, text) };
}

/** A network: an address whose host bits are zero, and a prefix length. */
export class IpPrefix {
  readonly network: IpAddress;
  readonly length: number;

  private constructor(network: IpAddress, length: number) {
    this.network = network;
    this.length = length;
  }

  /** Refuses host bits; the error carries the prefix without them. */
  static parse(text: string): IpPrefix {
    const { address, length } = splitPrefix(text);
    const prefix = IpPrefix.around(address, length);
    if (!prefix.network.equals(address)) {
      throw new AddressError(`"${text}" has host bits set`, prefix.toString());
    }
    return prefix;
  }

  /** The prefix of this length that holds the address. */
  static around(address: IpAddress, length: number): IpPrefix {
    const hostBits = BigInt(bitsOf(address.family) - length);
    return new IpPrefix(
      new IpAddress(address.family, (address.value >> hostBits) << hostBits),
      length,
    );
  }

  get family(): Family {
    return this.network.family;
  }

  /** How many addresses it holds, network and broadcast included. */
  get size(): bigint {
    return 1n << BigInt(bitsOf(this.family) - this.length);
  }

  get first(): IpAddress {
    return this.network;
  }

  get last(): IpAddress {
    return this.network.plus(this.size - 1n);
  }

  /**
   * What hosts may use: all of /31, /32, /127 and /128 (RFC 3021, RFC 6164); otherwise not the first
   * address (IPv4 network, IPv6 subnet-router anycast), nor, with IPv4, the last (broadcast).
   */
  usable(): { start: IpAddress; end: IpAddress } {
    if (this.size <= 2n) return { start: this.first, end: this.last };
    const end = this.family === 4 ? this.last.plus(-1n) : this.last;
    return { start: this.first.plus(1n), end };
  }

  /** The n-th address, counted from 0. */
  nth(n: bigint): IpAddress {
    if (n < 0n || n >= this.size) throw new AddressError(`${this.toString()} has no address ${n}`);
    return this.network.plus(n);
  }

  contains(other: IpAddress | IpPrefix): boolean {
    if (other instanceof IpPrefix) {
      return other.length >= this.length && this.contains(other.network);
    }
    return IpPrefix.around(other, Math.min(this.length, bitsOf(other.family))).equals(this);
  }

  overlaps(other: IpPrefix): boolean {
    return this.contains(other) || other.contains(this);
  }

  equals(other: IpPrefix): boolean {
    return this.length === other.length && this.network.equals(other.network);
  }

  toString(): string {
    return `${this.network.toString()}/${this.length}`;
  }
}

/** An address as an interface has it: `10.42.0.5/24`, host bits and all. */
export class InterfaceAddress {
  readonly address: IpAddress;
  readonly prefixLength: number;

  constructor(address: IpAddress, prefixLength: number) {
    this.address = address;
    this.prefixLength = parseLength(String(prefixLength), address.family, String(prefixLength));
  }

  static parse(text: string): InterfaceAddress {
    const { address, length } = splitPrefix(text);
    return new InterfaceAddress(address, length);
  }

  get prefix(): IpPrefix {
    return IpPrefix.around(this.address, this.prefixLength);
  }

  equals(other: InterfaceAddress): boolean {
    return this.prefixLength === other.prefixLength && this.address.equals(other.address);
  }

  toString(): string {
    return `${this.address.toString()}/${this.prefixLength}`;
  }
}

const MULTICAST_BIT = 0x01;
const LOCAL_BIT = 0x02;
const HOST_END_FIRST_BYTE = 0xfe;

/** A 48-bit Ethernet address. */
export class MacAddress {
  /** Twelve hexadecimal digits in lower case. */
  readonly #digits: string;

  private constructor(digits: string) {
    this.#digits = digits;
  }

  /** Six pairs of hexadecimal digits separated by colons, either case. */
  static parse(text: string): MacAddress {
    if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) {
      throw new AddressError(
        `"${text}" is not a MAC address (six pairs of hex digits with colons)`,
      );
    }
    return new MacAddress(text.replaceAll(':', '').toLowerCase());
  }

  static fromBytes(bytes: Uint8Array): MacAddress {
    if (bytes.length !== 6)
      throw new AddressError(`a MAC address has 6 bytes, not ${bytes.length}`);
    return new MacAddress(Buffer.from(bytes).toString('hex'));
  }

  /** The first twelve of these hexadecimal digits, which are in lower case. */
  static fromDigits(hex: string): MacAddress {
    return new MacAddress(hex.slice(0, 12));
  }

  withFirstByte(first: number): MacAddress {
    return new MacAddress(first.toString(16).padStart(2, '0') + this.#digits.slice(2));
  }

  toBytes(): Uint8Array {
    return new Uint8Array(Buffer.from(this.#digits, 'hex'));
  }

  get firstByte(): number {
    return Number.parseInt(this.#digits.slice(0, 2), 16);
  }

  get isMulticast(): boolean {
    return (this.firstByte & MULTICAST_BIT) !== 0;
  }

  /** Locally administered: chosen by software, not burnt in by a manufacturer. */
  get isLocal(): boolean {
    return (this.firstByte & LOCAL_BIT) !== 0;
  }

  get isZero(): boolean {
    return this.#digits === '000000000000';
  }

  /** The link-local address that a host with this MAC gives itself (RFC 4291, modified EUI-64). */
  linkLocal(): IpAddress {
    const [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0] = this.toBytes();
    const bytes = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ LOCAL_BIT, b, c, 0xff, 0xfe, d, e, f];
    return IpAddress.fromBytes(Uint8Array.from(bytes));
  }

  equals(other: MacAddress): boolean {
    return this.#digits === other.#digits;
  }

  toString(): string {
    const digits = this.#digits;
    return `${digits.slice(0, 2)}:${digits.slice(2, 4)}:${digits.slice(4, 6)}:${digits.slice(6, 8)}:${digits.slice(8, 10)}:${digits.slice(10)}`;
  }
}

/**
 * A locally administered unicast MAC that depends on nothing but the seed. Its first byte is never `fe`,
 * which marks the host's ends.
 */
export function deriveMac(seed: string): MacAddress {
  const mac = MacAddress.fromDigits(hash('sha256', seed, 'hex'));
  const first = (mac.firstByte & ~MULTICAST_BIT) | LOCAL_BIT;
  return mac.withFirstByte(first === HOST_END_FIRST_BYTE ? 0x02 : first);
}

/**
 * The MAC of the host's end of a port: the workload's with first byte `fe`, so that it is always the higher
 * one and a bridge that follows its lowest port never follows it.
 */
export function hostEndMac(mac: MacAddress): MacAddress {
  return mac.withFirstByte(HOST_END_FIRST_BYTE);
}
