import type { Family, StructFields, StructValue, Table, Values } from '#native/codec.ts';
import { Writer } from '#native/writer.ts';

// What `ip` and `bridge` of iproute2 6.1 send, captured by strace: the command, what it means, its bytes without
// the netlink header, a line for the fixed part and one or more for each attribute. bytes.live.test.ts captures
// them anew, in the order of the tables, on the devices of FIXTURE.

/** Commands of `ip` that make the devices which the others name. */
export const FIXTURE = [
  'link add br0 index 101 address 02:00:00:00:00:01 type bridge',
  'link add port0 index 102 type veth peer name port1 index 103',
  'link set port0 master br0 up',
  'link set br0 up',
  'addr add 10.9.0.1/24 dev br0',
  'link add lower index 104 type veth peer name upper index 105',
  'link add spare index 106 type bridge',
];

/** A captured message, and ours of the same meaning. */
export interface Golden {
  readonly command: string;
  /** RTM_… number. */
  readonly type: number;
  readonly hex: string;
  readonly written: string;
  readonly meant: unknown;
  readonly read: unknown;
}

export function golden<Fields extends StructFields, T extends Table>(given: {
  command: string;
  type: number;
  family: Family<Fields, T>;
  header: Partial<StructValue<Fields>>;
  attributes: Values<T>;
  hex: readonly string[];
}): Golden {
  const { command, type, family, header, attributes } = given;
  const hex = given.hex.join('');
  const writer = new Writer();
  family.write(writer, header, attributes);
  const { header: readHeader, attributes: readAttributes } = family.read(Buffer.from(hex, 'hex'));
  return {
    command,
    type,
    hex,
    written: writer.bytes.toString('hex'),
    meant: { header: nonZero(header), attributes },
    read: { header: nonZero(readHeader), attributes: readAttributes },
  };
}

const nonZero = (header: object): object =>
  Object.fromEntries(Object.entries(header).filter(([, value]) => value !== 0));
