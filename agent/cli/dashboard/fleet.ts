import type { FleetAttachment, FleetListAnswer } from '#protocol/attachment.ts';
import type { Attachment, VoltNetworkClient } from '#protocol/client.ts';
import { VoltError } from '#protocol/errors.ts';
import type { LedgerHostsAnswer } from '#protocol/ledger.ts';
import type { NetworkUsage } from '#protocol/network.ts';
import { wholeFleet } from '../whole-fleet.ts';
import { Kept, type Known } from './kept.ts';

type Host = LedgerHostsAnswer['hosts'][number];

export interface HostsView {
  readonly state: LedgerHostsAnswer['state'];
  /** Those that are not live first. */
  readonly hosts: readonly Omit<Host, 'machineId' | 'agentId'>[];
}

export interface NetworkView {
  readonly network: string;
  readonly type: string;
  readonly subnets: readonly string[];
  /** Null where it could not be read, or not for so many networks. */
  readonly usage: NetworkUsage | null;
}

export interface Filter {
  /** Somewhere in its ids, names or addresses, whatever the case. */
  readonly text: string;
  readonly network: string;
  readonly host: string;
  readonly kind: string;
}

export interface AttachmentsView {
  readonly rows: readonly FleetAttachment[];
  /** How many the filter lets through, and how many there are. */
  readonly matching: number;
  readonly all: number;
  readonly behind: FleetListAnswer['behind'];
}

/** How old an answer may get while nothing is heard of a change. */
const HOSTS_MS = 2_000;
const NETWORKS_MS = 5_000;
const ATTACHMENTS_MS = 15_000;
const MOST_HOSTS = 5_000;
const MOST_NETWORKS = 1_000;
const USAGES_AT_ONCE = 8;

/** The fleet, as its agents tell it. Nothing here changes anything. */
export class Fleet {
  readonly #client: VoltNetworkClient;
  readonly #ownHost: string;
  readonly #isUp: () => boolean;
  readonly #hosts: Kept<HostsView>;
  readonly #networks: Kept<readonly NetworkView[]>;
  readonly #attachments: Kept<FleetListAnswer>;

  constructor({
    client,
    host,
    isUp,
  }: {
    client: VoltNetworkClient;
    host: string;
    isUp: () => boolean;
  }) {
    this.#client = client;
    this.#ownHost = host;
    this.#isUp = isUp;
    const kept = <T>(mostAgeMs: number, ask: () => Promise<T>): Kept<T> =>
      new Kept({ mostAgeMs, ask: () => this.#asked(ask) });
    this.#hosts = kept(HOSTS_MS, () => this.#askHosts());
    this.#networks = kept(NETWORKS_MS, () => this.#askNetworks());
    this.#attachments = kept(ATTACHMENTS_MS, async () =>
      wholeFleet(client, await this.#liveHost(), {}),
    );
  }

  /** Something was heard of a change. */
  outdate(): void {
    this.#networks.outdate();
    this.#attachments.outdate();
    this.#hosts.outdate();
  }

  hosts(): Promise<Known<HostsView>> {
    return this.#hosts.read();
  }

  networks(): Promise<Known<readonly NetworkView[]>> {
    return this.#networks.read();
  }

  async attachments(
    filter: Filter,
    { offset, limit }: { offset: number; limit: number },
  ): Promise<Known<AttachmentsView>> {
    const { value, ...rest } = await this.#attachments.read();
    if (value === null) return { value, ...rest };
    const passing = value.attachments.filter((one) => passes(one, filter));
    const view = {
      rows: passing.slice(offset, offset + limit),
      matching: passing.length,
      all: value.attachments.length,
      behind: value.behind,
    };
    return { value: view, ...rest };
  }

  /** Throws VoltError: NOT_FOUND once it is detached. */
  attachment(host: string, id: string): Promise<Attachment> {
    return this.#asked(async () => (await this.#client.get(host, { id })).attachment);
  }

  /** Requests would wait for the connection until their time is over. */
  async #asked<T>(ask: () => Promise<T>): Promise<T> {
    if (!this.#isUp()) throw new VoltError('AGENT_UNAVAILABLE', 'NATS cannot be reached');
    return ask();
  }

  async #askHosts(): Promise<HostsView> {
    const hosts: Host[] = [];
    let page = await this.#client.ledgerHosts();
    hosts.push(...page.hosts);
    while (page.cursor !== undefined && hosts.length < MOST_HOSTS) {
      page = await this.#client.ledgerHosts({ cursor: page.cursor });
      hosts.push(...page.hosts);
    }
    const rank = ({ state }: Host): number => (state === 'live' ? 1 : 0);
    const shown = hosts.map(({ machineId: _machine, agentId: _agent, ...host }) => host);
    return { state: page.state, hosts: shown.toSorted((a, b) => rank(a) - rank(b)) };
  }

  async #askNetworks(): Promise<NetworkView[]> {
    const known: { network: string; type: string; subnets: string[] }[] = [];
    let cursor: string | undefined;
    do {
      const page = await this.#client.listNetworks({ cursor });
      for (const { network } of page.networks) {
        const { type, subnet, ipv6 } = network;
        const subnets = [subnet, ipv6?.subnet].filter((one) => one !== undefined);
        known.push({ network: network.network, type, subnets });
      }
      ({ cursor } = page);
    } while (cursor !== undefined && known.length < MOST_NETWORKS);
    const views: NetworkView[] = [];
    for (let next = 0; next < known.length; next += USAGES_AT_ONCE) {
      const some = known.slice(next, next + USAGES_AT_ONCE);
      views.push(...(await Promise.all(some.map((one) => this.#withUsage(one)))));
    }
    return views;
  }

  /** A network may have been deleted since it was listed. */
  async #withUsage(network: Omit<NetworkView, 'usage'>): Promise<NetworkView> {
    const answer = await this.#client.getNetwork(network.network).catch(() => null);
    return { ...network, usage: answer?.usage ?? null };
  }

  /** Any agent knows the whole fleet; that of this host is asked where there is one. */
  async #liveHost(): Promise<string> {
    const live = (await this.hosts()).value?.hosts.filter(({ state }) => state === 'live') ?? [];
    const own = live.find(({ host }) => host === this.#ownHost);
    return (own ?? live[0])?.host ?? this.#ownHost;
  }
}

function passes(one: FleetAttachment, { text, network, host, kind }: Filter): boolean {
  if (network !== '' && one.network !== network) return false;
  if (host !== '' && one.host !== host) return false;
  if (kind !== '' && one.kind !== kind) return false;
  if (text === '') return true;
  const words = [one.id, one.workload, one.hostname, one.mac, one.host, one.network];
  return [...words, ...one.addresses].join('\n').toLowerCase().includes(text.toLowerCase());
}
