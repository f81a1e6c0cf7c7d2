import { readdirSync } from 'node:fs';
import { isServed, servesDhcp, servesNames } from '#protocol/guest-services.ts';
import type { Network } from '#protocol/network.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Difference } from '#ipam-store/replay.ts';
import type { Log } from '../../log.ts';
import type { AttachmentRecord, Journal } from '../../storage/journal.ts';
import { hostLine, type NamedWorkload, nameLinesOf, type Served } from './configuration.ts';
import { foldersOf, NetworkServer } from './network-server.ts';

/** Who has which address in a network, on all hosts. */
export interface FollowedNetwork extends Disposable {
  readonly leases: ReadonlyMap<string, Lease>;
  /** False until all leases have been read once. */
  readonly isWhole: boolean;
}

export interface GuestServersOptions {
  readonly host: string;
  readonly runtimeDir: string;
  readonly journal: Pick<Journal, 'get' | 'values' | 'onChange'>;
  /** Follows the leases of a network; `onChange` is told of each change. */
  readonly follow: (network: string, onChange: (difference: Difference) => void) => FollowedNetwork;
  readonly log: Log;
}

/** How often each dnsmasq is looked at: one that was killed is back within a second. */
const LOOK_MS = 400;
/** Changes on other hosts are gathered for so long. */
const GATHER_MS = 300;

interface Entry {
  readonly server: NetworkServer;
  /** Those of this host, by id. */
  readonly records: Map<string, AttachmentRecord>;
  network: Network;
  /** Something of `records` is another since the network was served. */
  isDirty: boolean;
  followed: FollowedNetwork | undefined;
  /** All workloads on other hosts have their names; from then on what changes is enough. */
  hasAllNames: boolean;
  /** What has changed on other hosts, by id; undefined for what is gone. */
  readonly changed: Map<string, Lease | undefined>;
  gathering: NodeJS.Timeout | undefined;
}

/**
 * DHCP, router advertisements and names for the workloads of this host: one dnsmasq for each network that asks for them,
 * while somebody is attached to it. DHCP is for this host's own workloads; names are those of the network on all hosts.
 */
export class GuestServers {
  readonly #options: GuestServersOptions;
  readonly #entries = new Map<string, Entry>();
  readonly #ending = new Set<NetworkServer>();
  #looking: NodeJS.Timeout | undefined;

  constructor(options: GuestServersOptions) {
    this.#options = options;
  }

  /** Takes over what an agent before this one has left running. */
  start(): void {
    const { journal, runtimeDir } = this.#options;
    for (const record of journal.values()) this.#note(record.id, record);
    for (const entry of this.#entries.values()) this.#follow(entry);
    for (const name of namesIn(foldersOf(runtimeDir))) {
      if (!this.#entries.has(name))
        this.#end(new NetworkServer({ ...this.#options, network: name }));
    }
    for (const entry of this.#entries.values()) this.#forgetOthers(entry);
    journal.onChange((id) => this.#note(id, journal.get(id)));
    this.#looking = setInterval(() => {
      for (const { server } of this.#entries.values()) server.look();
    }, LOOK_MS).unref();
  }

  /** Each dnsmasq goes on. */
  async stop(): Promise<void> {
    clearInterval(this.#looking);
    const entries = [...this.#entries.values()];
    for (const { followed, gathering } of entries) {
      clearTimeout(gathering);
      followed?.[Symbol.dispose]();
    }
    const servers = [...entries.map(({ server }) => server), ...this.#ending];
    await Promise.all(servers.map(async (server) => server.stop()));
  }

  /** Why workloads get no DHCP or no names, in words that name the network. */
  get problems(): string[] {
    return [...this.#entries.keys()].flatMap((network) => this.warningsOf(network));
  }

  warningsOf(network: string): string[] {
    const problem = this.#entries.get(network)?.server.problem;
    return problem === undefined ? [] : [`network ${network}: DHCP and DNS: ${problem}`];
  }

  /** Another guest begins on the device of this attachment, which may name itself differently in DHCPv6. */
  forgetGuest(id: string): void {
    for (const { server, records } of this.#entries.values()) {
      if (records.has(id)) server.forgetLeases(id);
    }
  }

  /** The record of an attachment is another, or gone. */
  #note(id: string, record: AttachmentRecord | undefined): void {
    for (const [name, entry] of this.#entries) {
      if (name === record?.request.network || !entry.records.delete(id)) continue;
      this.#withdraw(entry, id);
    }
    if (record === undefined) return;
    const { network, attachment, state } = record;
    const name = record.request.network;
    const isHere = state === 'attached' && attachment !== undefined && network !== undefined;
    if (!isHere || !isServed(network)) {
      const entry = this.#entries.get(name);
      if (entry?.records.delete(id) === true) this.#withdraw(entry, id);
      return;
    }
    const entry = this.#entries.get(name) ?? this.#begin(network);
    entry.records.set(id, record);
    this.#put(entry, record);
    this.#noteDirty(entry);
  }

  #begin(network: Network): Entry {
    const { network: name } = network;
    const entry: Entry = {
      server: new NetworkServer({ ...this.#options, network: name }),
      records: new Map(),
      network,
      isDirty: false,
      followed: undefined,
      hasAllNames: false,
      changed: new Map(),
      gathering: undefined,
    };
    this.#entries.set(name, entry);
    return entry;
  }

  /** Many records may change in one turn of the event loop. */
  #noteDirty(entry: Entry): void {
    if (entry.isDirty) return;
    entry.isDirty = true;
    setImmediate(() => {
      entry.isDirty = false;
      if (entry.records.size > 0) this.#serve(entry);
    });
  }

  /** An attachment of this host is not here any more. */
  #withdraw(entry: Entry, id: string): void {
    if (entry.records.size === 0) {
      this.#entries.delete(entry.server.network);
      clearTimeout(entry.gathering);
      entry.followed?.[Symbol.dispose]();
      this.#end(entry.server);
      return;
    }
    entry.server.setHost(id, undefined);
    entry.server.setNames(id, []);
    this.#noteDirty(entry);
  }

  #end(server: NetworkServer): void {
    this.#ending.add(server);
    void server.end().finally(() => this.#ending.delete(server));
  }

  /** What the network says now: of attachments that have not been revised yet, the last definition counts. */
  #serve(entry: Entry): void {
    const records = [...entry.records.values()];
    const newest = records.reduce((one, other) =>
      (other.revision ?? 0) > (one.revision ?? 0) ? other : one,
    );
    const { network = entry.network } = newest;
    entry.server.serve(servedTo(network, records));
    if (network === entry.network && (entry.followed !== undefined) === servesNames(network))
      return;
    entry.network = network;
    for (const record of records) this.#put(entry, record);
    this.#follow(entry);
  }

  #put({ server, network }: Entry, { id, attachment, request }: AttachmentRecord): void {
    if (attachment === undefined) return;
    const { mac } = attachment;
    const { hostname } = request;
    const addresses = attachment.addresses.map(({ address }) => bare(address));
    const line = servesDhcp(network) ? hostLine({ mac, addresses, hostname }) : undefined;
    server.setHost(id, line === undefined ? undefined : { mac, addresses, line });
    this.#name(server, network, { id, hostname, addresses });
  }

  #name(server: NetworkServer, network: Network, workload: NamedWorkload): void {
    server.setNames(workload.id, servesNames(network) ? nameLinesOf(network, workload) : []);
  }

  #follow(entry: Entry): void {
    const { network } = entry;
    entry.hasAllNames = false;
    if (!servesNames(network)) {
      entry.followed?.[Symbol.dispose]();
      entry.followed = undefined;
    } else {
      entry.followed ??= this.#options.follow(network.network, ({ set, gone }) => {
        for (const lease of gone) entry.changed.set(lease.id, undefined);
        for (const lease of set) entry.changed.set(lease.id, lease);
        this.#gather(entry);
      });
    }
    this.#gather(entry);
  }

  #gather(entry: Entry): void {
    entry.gathering ??= setTimeout(() => {
      entry.gathering = undefined;
      this.#nameOthers(entry);
    }, GATHER_MS).unref();
  }

  /** The names of workloads on other hosts; those of this host follow its records. */
  #nameOthers(entry: Entry): void {
    const { server, network, followed, records, changed } = entry;
    const name = (id: string, lease: Lease | undefined): void => {
      if (records.has(id)) return;
      const isElsewhere = lease !== undefined && lease.host !== this.#options.host;
      if (isElsewhere) {
        this.#name(server, network, { ...lease, addresses: lease.addresses.map(bare) });
      } else server.setNames(id, []);
    };
    // Until then those that an agent before this one has named keep their names.
    if (followed !== undefined && !followed.isWhole) return;
    if (entry.hasAllNames) {
      for (const [id, lease] of changed) name(id, lease);
    } else {
      const leases = followed?.leases ?? new Map<string, Lease>();
      for (const [id, lease] of leases) name(id, lease);
      for (const id of server.ids.named) if (!leases.has(id)) name(id, undefined);
      entry.hasAllNames = true;
    }
    changed.clear();
  }

  /** Whom an agent before this one has served, and this host does not have any more. */
  #forgetOthers({ server, records }: Entry): void {
    for (const id of server.ids.hosts) {
      if (records.has(id)) continue;
      server.setHost(id, undefined);
      server.setNames(id, []);
    }
  }
}

/** Ends every dnsmasq of this host, while no agent runs. */
export async function endGuestServers(runtimeDir: string, log: Log): Promise<void> {
  const names = namesIn(foldersOf(runtimeDir));
  const servers = names.map((network) => new NetworkServer({ network, runtimeDir, log }));
  await Promise.all(servers.map(async (server) => server.end()));
}

/** The MTU of most, and that of those that have another. */
function servedTo(network: Network, records: readonly AttachmentRecord[]): Served {
  const mtus = records.flatMap(({ attachment }) => {
    const { device = null, mac = '' } = attachment ?? {};
    return device === null ? [] : [{ mac, mtu: device.mtu }];
  });
  const mtu = network.mtu ?? Math.max(...mtus.map((one) => one.mtu), 0);
  const others = mtus.filter((one) => one.mtu !== mtu).map((one) => [one.mac, one.mtu] as const);
  return { network, mtu, otherMtus: new Map(others) };
}

const bare = (address: string): string => address.replace(/\/.*/, '');

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}
