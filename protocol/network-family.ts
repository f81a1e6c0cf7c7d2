import { AddressError, IpAddress, IpPrefix } from './address.ts';
import { VoltError } from './errors.ts';

interface FamilyKeys {
  readonly subnet?: string | undefined;
  readonly gateway?: string | undefined;
  readonly pool?: { readonly start: string; readonly end: string } | undefined;
  readonly reservations?: Readonly<Record<string, string>> | undefined;
}

interface CheckedFamily {
  subnet: string;
  gateway?: string;
  pool?: { start: string; end: string };
  reservations?: Record<string, string>;
}

interface Place {
  readonly family: 4 | 6;
  /** Of the keys, with its dot. */
  readonly path: '' | 'ipv6.';
}

/**
 * Checks what a network says of one address family: host bits, addresses outside the subnet, a pool that ends
 * before it starts, an address reserved twice. Undefined where there is no subnet, and nothing that needs one.
 */
export function checkedFamily(
  keys: FamilyKeys,
  { family, path }: Place,
): CheckedFamily | undefined {
  const { subnet: text, gateway, pool, reservations } = keys;
  if (text === undefined) {
    for (const key of ['gateway', 'pool', 'reservations'] as const) {
      if (keys[key] !== undefined) refuse(`${path}${key}`, 'needs a subnet');
    }
    return undefined;
  }
  const subnet = checkedSubnet(`${path}subnet`, text, family);
  const own = new OwnAddresses(subnet, path);
  return {
    subnet: subnet.toString(),
    ...(gateway !== undefined && { gateway: own.gateway(gateway) }),
    ...(pool !== undefined && { pool: own.pool(pool) }),
    ...(reservations !== undefined && { reservations: own.reservations(reservations) }),
  };
}

// Where no workload can live: the kernel refuses such addresses on a device, or routes them elsewhere.
const UNUSABLE = Object.entries({
  '0.0.0.0/8': 'this host',
  '127.0.0.0/8': 'loopback',
  '224.0.0.0/4': 'multicast',
  '::/127': 'this host and loopback',
  '::ffff:0:0/96': 'IPv4-mapped addresses',
  'fe80::/10': 'link-local addresses',
  'ff00::/8': 'multicast',
}).map(([text, what]) => ({ prefix: IpPrefix.parse(text), what }));

function checkedSubnet(path: string, text: string, family: 4 | 6): IpPrefix {
  const subnet = at(path, () => IpPrefix.parse(text));
  if (subnet.family !== family) {
    const elsewhere = family === 4 ? '; IPv6 goes under "ipv6"' : '';
    refuse(path, `${text} is no IPv${family} prefix${elsewhere}`);
  }
  for (const { prefix, what } of UNUSABLE) {
    if (subnet.overlaps(prefix)) {
      refuse(path, `${text} overlaps ${prefix.toString()}, which is for ${what}`);
    }
  }
  return subnet;
}

/** Checks the addresses that a network names within one of its subnets. Results are canonical text. */
class OwnAddresses {
  readonly #subnet: IpPrefix;
  readonly #path: string;
  #gateway: IpAddress | undefined;

  constructor(subnet: IpPrefix, path: string) {
    this.#subnet = subnet;
    this.#path = path;
  }

  gateway(text: string): string {
    this.#gateway = this.#assignable('gateway', text);
    return this.#gateway.toString();
  }

  pool(given: { readonly start: string; readonly end: string }): { start: string; end: string } {
    const start = this.#inside('pool.start', given.start);
    const end = this.#inside('pool.end', given.end);
    if (start.compare(end) > 0) {
      const path = `${this.#path}pool`;
      refuse(path, `ends before it starts; did you mean ${end.toString()} to ${start.toString()}?`);
    }
    return { start: start.toString(), end: end.toString() };
  }

  reservations(given: Readonly<Record<string, string>>): Record<string, string> {
    const workloads = new Map<string, string>();
    const entries = Object.entries(given).map(([workload, text]) => {
      const key = `reservations.${workload}`;
      const reserved = this.#assignable(key, text);
      const path = `${this.#path}${key}`;
      if (this.#gateway?.equals(reserved) === true) refuse(path, `${text} is the gateway`);
      const other = workloads.get(reserved.toString());
      if (other !== undefined) refuse(path, `${text} is reserved for ${other} already`);
      workloads.set(reserved.toString(), workload);
      return [workload, reserved.toString()] as const;
    });
    return Object.fromEntries(entries);
  }

  #inside(key: string, text: string): IpAddress {
    const path = `${this.#path}${key}`;
    const parsed = at(path, () => IpAddress.parse(text));
    if (!this.#subnet.contains(parsed)) {
      refuse(path, `${text} is outside ${this.#subnet.toString()}`);
    }
    return parsed;
  }

  #assignable(key: string, text: string): IpAddress {
    const parsed = this.#inside(key, text);
    const { start, end } = this.#subnet.usable();
    if (parsed.compare(start) >= 0 && parsed.compare(end) <= 0) return parsed;
    const what = parsed.compare(start) < 0 ? 'network' : 'broadcast';
    return refuse(
      `${this.#path}${key}`,
      `${text} is the ${what} address of ${this.#subnet.toString()}`,
    );
  }
}

/** Throws INVALID_REQUEST under the path of a key. */
export function refuse(path: string, message: string): never {
  throw new VoltError('INVALID_REQUEST', `${path}: ${message}`, { details: { path } });
}

/** Runs a parser of protocol/address.ts; what it refuses is refused under this path. */
export function at<T>(path: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (error instanceof AddressError) return refuse(path, error.message);
    throw error;
  }
}
