import { existsSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { isKernelError } from '#native/errors.ts';
import type { ListedChain, ListedRule } from '#native/nft-listing.ts';
import { Nftables, NftablesUnavailable } from '#native/nftables.ts';
import { ifnameIn } from '#native/nftset.ts';
import { isServed } from '#protocol/guest-services.ts';
import { gatewayHolder, type Network } from '#protocol/network.ts';
import { appliedIn } from './bridges/applied.ts';
import type { BridgeDescription } from './bridges/description.ts';
import { compareBridge } from './bridges/comparison.ts';
import { type BridgeProblem, problemsOf } from './bridges/problems.ts';
import { look } from './bridges/snapshot.ts';
import { GUEST_PROGRAMS, programPath } from './dnsmasq/demands.ts';
import { servicePortHolders } from './dnsmasq/port-holders.ts';
import { Kernel } from './kernel.ts';
import { type ForwardingSwitch, forwardingSwitch } from './networks/forwarding.ts';
import { conflictOf, overlapWithHost } from './own-addresses.ts';

/** One thing that was looked at: what was seen, why it matters, and the commands that mend it. */
export interface Finding {
  readonly severity: 'ok' | 'advice' | 'problem';
  readonly subject: string;
  readonly seen: string;
  /** For an operator to run, exactly as they are; nothing here is ever run. */
  readonly commands: readonly string[];
}

/** A table of somebody else's that has a chain where packets are forwarded. */
export interface ForwardingTable {
  readonly family: (typeof FAMILIES)[number];
  readonly name: string;
  readonly chains: readonly ListedChain[];
  readonly rules: readonly ListedRule[];
}

const FAMILIES = ['ip', 'ip6', 'inet'] as const;

/** A host as far as the doctor looks at it. */
export interface Observed {
  readonly kernel: string;
  /** Why nftables cannot be used. */
  readonly nftables: string | undefined;
  /** Bridges of host-only networks of this host. */
  readonly bridges: readonly string[];
  readonly forwarding: readonly ForwardingTable[];
  /** Tables of iptables-legacy, which nft does not see. */
  readonly legacyTables: readonly string[];
  /** Who has switched on that the host forwards packets, by address family. */
  readonly forwardedBy: Readonly<Record<4 | 6, ForwardingSwitch>>;
  readonly tun: boolean;
  /** What only an operator can change of the networks that this host has, by network. */
  readonly differing: ReadonlyMap<string, readonly BridgeProblem[]>;
  /** Why the agent's account of its networks cannot be read. */
  readonly accountUnread: string | undefined;
  /** What the host itself has in a subnet of a network, in words, by network. */
  readonly overlaps: ReadonlyMap<string, string>;
  /** Who has a port of DHCP or DNS, where a network of the fleet has hosts serve these; in words. */
  readonly servicePorts: readonly string[];
  /** The program that is missing for that, and how to get it. */
  readonly dnsmasq: 'there' | 'missing' | 'not wanted';
  /** Why nobody knows which networks the fleet has. */
  readonly networksUnknown: string | undefined;
}

export interface Look {
  /** The name of the agent's own tables. */
  readonly table: string;
  /** Where the agent keeps account of what it has made. */
  readonly runtimeDir: string;
  /** The networks of the fleet, or why they are not known. */
  readonly networks: readonly Network[] | string;
}

/** Reads this host; needs CAP_NET_ADMIN. */
export function observeHost({ table, runtimeDir, networks }: Look): Observed {
  const found = { bridges: [] as string[], forwarding: [] as ForwardingTable[] };
  let nftables: string | undefined;
  try {
    using nft = Nftables.open();
    found.bridges = (nft.elements({ family: 'inet', name: table }, 'bridges') ?? []).map(ifnameIn);
    found.forwarding = forwardingOf(nft, table);
  } catch (error) {
    if (!(error instanceof NftablesUnavailable) && !isKernelError(error, 'EPERM')) throw error;
    nftables = error.message;
  }
  return {
    kernel: release(),
    nftables,
    ...found,
    legacyTables: ['ip', 'ip6'].flatMap((family) => linesOf(`/proc/net/${family}_tables_names`)),
    forwardedBy: { 4: forwardingSwitch(4), 6: forwardingSwitch(6) },
    tun: existsSync('/dev/net/tun'),
    ...guestServices(networks),
    ...networksOn(runtimeDir, networks),
  };
}

function guestServices(networks: Look['networks']): Pick<Observed, 'servicePorts' | 'dnsmasq'> {
  if (typeof networks === 'string' || !networks.some(isServed)) {
    return { servicePorts: [], dnsmasq: 'not wanted' };
  }
  const isThere = GUEST_PROGRAMS.every((name) => programPath(name) !== undefined);
  const others = servicePortHolders().filter(({ isOurs }) => !isOurs);
  return { servicePorts: others.map(({ text }) => text), dnsmasq: isThere ? 'there' : 'missing' };
}

function networksOn(
  runtimeDir: string,
  networks: Look['networks'],
): Pick<Observed, 'differing' | 'accountUnread' | 'overlaps' | 'networksUnknown'> {
  using kernel = new Kernel();
  let applied: readonly BridgeDescription[] = [];
  let accountUnread: string | undefined;
  try {
    applied = appliedIn(runtimeDir);
  } catch (error) {
    accountUnread = error instanceof Error ? error.message : String(error);
  }
  const differing = applied.map((description) => {
    const seen = look(kernel, description);
    const differences = compareBridge(description, seen);
    return [description.network, problemsOf(description, seen, differences)] as const;
  });
  const known = typeof networks === 'string' ? [] : networks;
  const overlaps = known.flatMap((network) => {
    const { uplink, parent } = network;
    const nic = uplink?.device ?? parent;
    // One whose NIC is elsewhere is for other hosts; one that is neither on a NIC nor on a bridge takes nothing from any.
    const comesHere =
      nic === undefined ? gatewayHolder(network) === 'bridge' : kernel.links.indexOf(nic) !== null;
    const overlap = comesHere ? overlapWithHost(kernel, network) : undefined;
    return overlap === undefined
      ? []
      : [[network.network, conflictOf(network, overlap).message] as const];
  });
  return {
    differing: new Map(differing),
    accountUnread,
    overlaps: new Map(overlaps),
    networksUnknown: typeof networks === 'string' ? networks : undefined,
  };
}

const OWNED_SINCE = [6, 9] as const;

/** What an operator has to know of a host, and do about it. Pure: everything it goes by is in what was observed. */
export function diagnose(observed: Observed): Finding[] {
  const { kernel, nftables, bridges, legacyTables, tun } = observed;
  const [major = 0, minor = 0] = kernel.split('.').map(Number);
  const owned = major > OWNED_SINCE[0] || (major === OWNED_SINCE[0] && minor >= OWNED_SINCE[1]);
  return [
    nftables === undefined
      ? ok('nftables', 'libnftables and nf_tables are there')
      : problem('nftables', nftables, ['apt-get install libnftables1']),
    owned
      ? ok('kernel', `${kernel}: the agent's tables are its own, nobody else can flush them`)
      : advice(
          'kernel',
          `${kernel} is older than 6.9: "nft flush ruleset" takes the port filter away until the agent has put it back`,
        ),
    tun
      ? ok('tun', '/dev/net/tun is there')
      : problem('tun', 'without /dev/net/tun no VM gets a TAP', ['modprobe tun']),
    ...guestFindings(observed),
    ...forwardingFindings(observed),
    ...(legacyTables.length > 0
      ? [
          advice(
            'iptables-legacy',
            `tables ${legacyTables.join(', ')} are in use, which nft does not show: look at their FORWARD chains`,
            ['iptables-legacy -S FORWARD', 'ip6tables-legacy -S FORWARD'],
          ),
        ]
      : []),
    ...bridges.flatMap((bridge) => forwardFindings(bridge, observed.forwarding)),
    ...networkFindings(observed),
  ];
}

const guestFindings = ({ dnsmasq, servicePorts }: Observed): Finding[] => [
  ...(dnsmasq === 'missing'
    ? [
        problem('dnsmasq', 'networks with DHCP or names cannot have workloads here', [
          'apt-get install dnsmasq-base dnsmasq-utils',
        ]),
      ]
    : []),
  ...servicePorts.map((seen) =>
    advice(
      'dnsmasq',
      `${seen}: unless that is on other devices and addresses alone, networks with DHCP or names are not served`,
    ),
  ),
];

const networkFindings = ({
  differing,
  accountUnread,
  overlaps,
  networksUnknown,
}: Observed): Finding[] => [
  ...(accountUnread === undefined
    ? []
    : [problem('networks.json', `what the agent has made cannot be read: ${accountUnread}`, [])]),
  ...[...differing].flatMap(([network, problems]) =>
    problems.map(({ reason, commands }) => problem(`network ${network}`, reason, commands)),
  ),
  ...[...overlaps].map(([network, reason]) =>
    advice(`network ${network}`, `${reason}: the first attach to it here is refused`),
  ),
  ...(networksUnknown === undefined
    ? []
    : [
        advice(
          'networks',
          `what this host has in the subnets of networks was not looked at: ${networksUnknown}`,
        ),
      ]),
];

const ok = (subject: string, seen: string): Finding => ({
  severity: 'ok',
  subject,
  seen,
  commands: [],
});
const advice = (subject: string, seen: string, commands: readonly string[] = []): Finding => ({
  severity: 'advice',
  subject,
  seen,
  commands,
});
const problem = (subject: string, seen: string, commands: readonly string[]): Finding => ({
  severity: 'problem',
  subject,
  seen,
  commands,
});

const SWITCHES = { 4: 'net.ipv4.ip_forward', 6: 'net.ipv6.conf.all.forwarding' } as const;

function forwardingFindings({ bridges, forwardedBy }: Observed): Finding[] {
  return ([4, 6] as const).flatMap((family) => {
    const name = SWITCHES[family];
    const subject = `forwarding of IPv${family}`;
    switch (forwardedBy[family]) {
      case 'nobody':
        if (bridges.length === 0 || family === 6) return [];
        return [
          problem(subject, `${name} is off: host-only networks reach nobody`, [
            `sysctl -w ${name}=2`,
          ]),
        ];
      case 'agent':
        return [
          ok(
            subject,
            `this agent has switched ${name} on (2) for its networks, and forwards nothing between other devices; ` +
              'an operator who wants that writes 1',
          ),
        ];
      case 'operator':
        return [
          advice(
            subject,
            `${name} is on, and not by this agent: the host forwards between its devices what no rule of yours drops; ` +
              'bridges of networks that are not "routed" stay closed',
          ),
        ];
    }
  });
}

/** What in everybody else's rules stops the traffic of one host-only bridge. */
function forwardFindings(bridge: string, forwarding: readonly ForwardingTable[]): Finding[] {
  const findings = forwarding.flatMap((table) => {
    const passes = (side: 'iifname' | 'oifname'): boolean =>
      table.rules.some((rule) => accepts(rule, side, bridge));
    return table.chains
      .filter(({ forwards, drops }) => forwards && (drops || table.name === 'firewalld'))
      .map(({ name }) => {
        const place = `${table.family} ${table.name} ${name}`;
        if (passes('iifname') && passes('oifname')) {
          return ok(`bridge ${bridge}`, `${place} drops by default, and lets this bridge through`);
        }
        const seen = `${place} drops what is forwarded to and from this bridge`;
        return problem(`bridge ${bridge}`, seen, remedy(bridge, table, name));
      });
  });
  if (findings.length > 0) return findings;
  return [ok(`bridge ${bridge}`, 'nobody else drops what is forwarded to and from it')];
}

/** In the words of whoever owns the chain: rules of another tool in its table would confuse it. */
function remedy(
  bridge: string,
  { family, name: table, chains }: ForwardingTable,
  name: string,
): string[] {
  const hasChain = (other: string): boolean => chains.some((one) => one.name === other);
  if (table === 'firewalld') {
    return [
      `firewall-cmd --permanent --zone=trusted --add-interface=${bridge}`,
      'firewall-cmd --reload',
    ];
  }
  if (hasChain('ufw-user-forward') || hasChain('ufw6-user-forward')) {
    return [`ufw route allow in on ${bridge}`, `ufw route allow out on ${bridge}`];
  }
  const byIptables =
    (family === 'ip' || family === 'ip6') && table === 'filter' && name === 'FORWARD';
  if (byIptables) {
    const tool = family === 'ip' ? 'iptables' : 'ip6tables';
    const chain = hasChain('DOCKER-USER') ? 'DOCKER-USER' : 'FORWARD';
    return [
      `${tool} -I ${chain} -i ${bridge} -j ACCEPT`,
      `${tool} -I ${chain} -o ${bridge} -m conntrack --ctstate ESTABLISHED,RELATED,DNAT -j ACCEPT`,
    ];
  }
  const place = `${family} ${table} ${name}`;
  return [
    `nft insert rule ${place} iifname "${bridge}" accept`,
    `nft insert rule ${place} oifname "${bridge}" ct state established,related accept`,
    `nft insert rule ${place} oifname "${bridge}" ct status dnat accept`,
  ];
}

/** True for a rule that accepts what comes from a bridge, or goes to it on whatever further condition. */
function accepts(rule: ListedRule, side: 'iifname' | 'oifname', bridge: string): boolean {
  const { conditions } = rule;
  const named = conditions.some((one) => {
    if (one.key !== side) return false;
    return one.isWhole ? one.name === bridge : bridge.startsWith(one.name);
  });
  // What comes from a workload has to pass whatever it is.
  return rule.accepts && named && (side === 'oifname' || conditions.length === 1);
}

/** The tables of others that have a chain at the forward hook, whole. */
function forwardingOf(nft: Nftables, own: string): ForwardingTable[] {
  return FAMILIES.flatMap((family) => {
    const tables = Map.groupBy(nft.chains(family), ({ table }) => table);
    return [...tables]
      .filter(([name, chains]) => name !== own && chains.some(({ forwards }) => forwards))
      .map(([name, chains]) => ({ family, name, chains, rules: nft.rules({ family, name }) }));
  });
}

function linesOf(path: string): string[] {
  try {
    return readFileSync(path, 'utf8')
      .split('\n')
      .filter((line) => line !== '');
  } catch {
    return [];
  }
}
