import type { Redis } from 'ioredis';
import { deriveMac } from '#protocol/address.ts';
import { parseNetwork } from '#protocol/network.ts';
import type { Ledger, NetworkRecord } from '#ipam-store/ledger.ts';

/** What a ledger is filled with: each host has its leases in a few networks, each network on some of the hosts. */
export interface Filling {
  readonly root: string;
  readonly hosts: number;
  readonly leasesPerHost: number;
  readonly networks: number;
}

const NETWORKS_PER_HOST = 5;
const HOSTS_AT_ONCE = 64;
const PREFIX_LENGTH = 20;
/** As if its heartbeats were heard for a year. */
const LIVES_MS = 31_536_000_000;

export const hostName = (index: number): string => `host-${String(index).padStart(5, '0')}`;

/**
 * Lays out what so many hosts, networks and leases leave in a ledger, past its functions: a million leases in the
 * time in which those would grant a tenth. The ledger is armed, and stays so. Answers its networks.
 */
export async function fillLedger(
  ledger: Ledger,
  raw: Redis,
  filling: Filling,
): Promise<readonly NetworkRecord[]> {
  const { root } = filling;
  const records: NetworkRecord[] = [];
  for (let index = 0; index < filling.networks; index += 1) {
    const subnet = `${textOf(firstOf(index))}/${PREFIX_LENGTH}`;
    const network = parseNetwork({ network: `net-${index}`, subnet, reuseDelaySeconds: 0 });
    records.push(await ledger.putNetwork(network));
  }
  const generation = Number(await raw.hget(`${root}:leases`, '#generation'));
  // The counter stays, or the ledger would see that it is not what it has written.
  const before = generation - filling.hosts * filling.leasesPerHost;
  const used = records.map(() => 0);
  let given = 0;
  for (let from = 0; from < filling.hosts; from += HOSTS_AT_ONCE) {
    const some = raw.pipeline();
    for (let at = from; at < Math.min(from + HOSTS_AT_ONCE, filling.hosts); at += 1) {
      const host = hostName(at);
      const leases = leasesOf(at, filling, records, used);
      const json = leases.map((lease, n) => storedText(lease, host, before + given + n));
      given += leases.length;
      some.hset(`${root}:leases`, Object.fromEntries(leases.map(({ id }, n) => [id, json[n]])));
      const entries = leases.map(({ network, id }) => `${network} ${id}`);
      some.zadd(`${root}:host:${host}:ids`, ...entries.flatMap((entry) => [0, entry]));
      for (const network of new Set(leases.map((lease) => lease.network))) {
        const here = leases.filter((lease) => lease.network === network);
        const held = here.flatMap(({ hex, id }) => [0, `${hex} ${id}`]);
        some.zadd(`${root}:net:${network}:4:held`, ...held);
        some.zadd(`${root}:net:${network}:hosts`, 0, host);
        some.hincrby(`${root}:leases`, `#hosts:${network}`, 1);
        const macs = Object.fromEntries(here.map(({ mac, id }) => [`mac:${mac}`, id]));
        some.hset(`${root}:net:${network}`, macs);
      }
      const asserted = String(Math.floor(generation / 2 ** 32));
      const session = { machineId: `machine-${host}`, bootId: 'boot-1', seenMs: '0', asserted };
      some.hset(`${root}:host:${host}`, session);
      some.zadd(`${root}:roster`, 0, host);
      some.zadd(`${root}:hosts`, Date.now() + LIVES_MS, host);
    }
    await checked(some.exec());
  }
  const last = raw.pipeline();
  for (const [index, record] of records.entries()) {
    const { network } = record.network;
    const next = firstOf(index) + 1 + (used[index] ?? 0);
    const end = firstOf(index) + 2 ** (32 - PREFIX_LENGTH) - 2;
    last.hset(`${root}:net:${network}`, 'next:4', `${hexOf(next)}-${hexOf(end)}`);
    last.hset(`${root}:leases`, `#held:4:${network}`, String(used[index]));
  }
  await checked(last.exec());
  return records;
}

interface Planned {
  readonly id: string;
  readonly network: string;
  readonly hex: string;
  readonly mac: string;
}

function leasesOf(
  host: number,
  { leasesPerHost, networks }: Filling,
  records: readonly NetworkRecord[],
  used: number[],
): Planned[] {
  return Array.from({ length: leasesPerHost }, (_, n) => {
    const index = (host * NETWORKS_PER_HOST + (n % NETWORKS_PER_HOST)) % networks;
    const network = records[index]?.network.network ?? '';
    const id = `vm-${String(host).padStart(5, '0')}-${String(n).padStart(3, '0')}`;
    const place = (used[index] ?? 0) + 1;
    used[index] = place;
    const hex = hexOf(firstOf(index) + place);
    return { id, network, hex, mac: deriveMac(id).toString() };
  });
}

/** As volt1_acquire puts it together. */
const storedText = ({ id, network, hex, mac }: Planned, host: string, generation: number): string =>
  `{"id":"${id}","workload":"${id}","kind":"vm","network":"${network}","host":"${host}",` +
  `"bootId":"0b6f8b2e-7a0e-4c6e-9d8a-3a1c2b4d5e6f","mac":"${mac}","lengths":{"4":${PREFIX_LENGTH}},` +
  `"generation":"${generation}","grantedAtMs":"${Date.now()}","hex":{"4":"${hex}"},"before":{}}`;

const firstOf = (network: number): number => 0x0a000000 + network * 2 ** (32 - PREFIX_LENGTH);
const hexOf = (value: number): string => value.toString(16).padStart(8, '0');
const textOf = (value: number): string =>
  [24, 16, 8, 0].map((shift) => (value >>> shift) & 0xff).join('.');

async function checked(
  answers: Promise<[error: Error | null, result: unknown][] | null>,
): Promise<void> {
  for (const [error] of (await answers) ?? []) if (error !== null) throw error;
}
