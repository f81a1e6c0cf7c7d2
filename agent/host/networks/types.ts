import type { Network } from '#protocol/network.ts';
import type { Steps } from '#native/steps.ts';
import type { KernelOperation } from '#native/trace.ts';
import { Firewall } from '../firewall/firewall.ts';
import type { Config } from '../../config.ts';
import type { Journal } from '../../storage/journal.ts';
import { Kernel } from '../kernel.ts';
import { ownAddresses } from '../own-addresses.ts';
import type { Log } from '../../log.ts';
import { type HostDevices, openHostDevices } from '../reconcile/host-devices.ts';
import { Applied } from '../bridges/applied.ts';
import { Bridges, type NeedsOfType } from '../bridges/bridges.ts';
import { Bridged } from './bridged.ts';
import { HostOnly } from './host-only.ts';
import { Forwarding } from './forwarding.ts';
import { type HostAttachments, openHostAttachments } from '../host-attachments.ts';
import { Isolated } from './isolated.ts';
import { Macvtap } from './macvtap.ts';
import { describeBy, type NetworkTypes } from './network-type.ts';
import type { DryRunOrder } from './dry-run.ts';
import { DryRuns } from './dry-runs.ts';
import { seen, type SeenLink, taggedDevices } from '../reconcile/observe.ts';
import { PortMaps } from './port-maps.ts';
import { Removal } from './removal.ts';
import { Sriov } from './sriov.ts';
import { WorkloadNamespaces } from './workload-namespaces.ts';

/** All parts of an agent that touch the kernel of its host. */
export interface HostNetwork {
  readonly networkTypes: NetworkTypes;
  readonly firewall: Pick<
    Firewall,
    'start' | 'restore' | 'unload' | 'onRestored' | 'problem' | typeof Symbol.dispose
  >;
  readonly forwarding: Pick<
    Forwarding,
    'start' | 'switchOff' | 'onSwitchedOff' | typeof Symbol.dispose
  >;
  /**
   * Finds the namespace that `netns` of a request leads to, and tells whether the namespace of an attachment is gone.
   */
  readonly namespaces: Pick<WorkloadNamespaces, 'find' | 'hasLeft'>;
  readonly attachments: HostAttachments;
  /** The devices that reconcile observes and watches. */
  readonly devices: HostDevices;
  readonly dryRuns: {
    /**
     * The changes that an attach would make in the kernel; makes none on the host. DEADLINE_EXCEEDED where it takes
     * longer than until `deadline` (`performance.now()` time).
     */
    readonly dryRun: (order: DryRunOrder, deadline: number) => Promise<readonly KernelOperation[]>;
    readonly close: () => Promise<void>;
  };
  /** All devices of the host, for `cleanHost`. */
  readonly links: () => SeenLink[];
  /** Names of all devices of ours on this host, by attachment id. */
  readonly taggedDevices: () => Steps<ReadonlyMap<string, string>>;
  /** The addresses of this host that no attachment of the network may get, each with its device. */
  readonly ownAddresses: (network: Network) => ReadonlyMap<string, string>;
  /** The objects of networks on this host, beside the devices of workloads. */
  readonly bridges: Pick<
    Bridges,
    | 'names'
    | 'revise'
    | 'compare'
    | 'repair'
    | 'clean'
    | 'disturbedBy'
    | 'networksOn'
    | 'networksForwarding'
    | 'problems'
    | 'warningsOf'
  >;
}

/** The network types of this host, over one kernel and one firewall. */
export function openHostNetwork(options: {
  readonly config: Pick<Config, 'host' | 'nftablesTable' | 'runtimeDir'>;
  readonly journal: Journal;
  readonly log: Log;
}): HostNetwork {
  const { config, journal, log } = options;
  const { host, nftablesTable, runtimeDir } = config;
  const kernel = new Kernel();
  const removal = new Removal(new Kernel(), log);
  const firewall = new Firewall({ log, table: nftablesTable });
  const forwarding = new Forwarding({ kernel, firewall, log });
  const dryRuns = new DryRuns({ settings: { host, nftablesTable }, log });
  const namespaces = new WorkloadNamespaces({ journal, kernel });
  const applied = new Applied({ runtimeDir, log });
  applied.load();
  const inUse = (): ReadonlySet<string> =>
    new Set(journal.values().map(({ request }) => request.network));
  const attached = (): ReadonlySet<string> =>
    new Set(journal.values().flatMap(({ attachment }) => attachment?.network ?? []));
  const needsOf = (network: Network): NeedsOfType | undefined =>
    networkTypes[network.type]?.needs?.(network);
  const bridges = new Bridges({
    ...{ host, kernel, firewall, forwarding, applied, needsOf },
    ...{ inUse, attached, log },
  });
  const portMaps = new PortMaps({ firewall, kernel });
  const parts = { host, kernel, removal, journal, firewall, bridges, namespaces, portMaps, log };
  const networkTypes: NetworkTypes = networkTypesOver(parts);
  const describe = describeBy(networkTypes);
  return {
    networkTypes,
    attachments: openHostAttachments({ kernel, firewall, portMaps, networkTypes, describe }),
    firewall,
    forwarding,
    namespaces,
    devices: openHostDevices({ kernel, removal, firewall, describe }),
    dryRuns: {
      dryRun: (order, deadline) => {
        const knowsBridge = firewall.has(`bridge:${order.network.bridge}`);
        return dryRuns.dryRun({ ...order, knowsBridge }, deadline);
      },
      close: () => dryRuns.close(),
    },
    links: () => kernel.links.list().map(seen),
    taggedDevices,
    ownAddresses: (network) => {
      if (needsOf(network) !== undefined) return bridges.ownAddresses(network);
      return network.parent === undefined ? new Map() : ownAddresses(kernel, network);
    },
    bridges,
  };
}

/** Nothing is attached in the namespace of a dry run. */
const nobody = (): ReadonlySet<string> => new Set();

/** The network types over one kernel and one firewall. The one list of them. */
export function networkTypesOver(parts: {
  readonly host: string;
  readonly kernel: Kernel;
  readonly removal: Removal;
  readonly journal: Pick<Journal, 'namesDevice' | 'get' | 'values'>;
  readonly firewall: Firewall;
  /** By default new ones, for the throw-away namespace of a dry run. */
  readonly bridges?: Bridges;
  /** The namespaces that requests name; a dry run has its own. */
  readonly namespaces?: WorkloadNamespaces;
  /** The port maps of the attachments of this host; a dry run has its own. */
  readonly portMaps?: PortMaps;
  readonly log: Log;
  readonly findDevice?: () => string;
}): NetworkTypes {
  const { host, kernel, journal, firewall, log } = parts;
  const namespaces = parts.namespaces ?? new WorkloadNamespaces(parts);
  const applied = new Applied({ runtimeDir: undefined, log });
  const bridges =
    parts.bridges ??
    new Bridges({
      ...{ host, kernel, firewall, applied },
      needsOf: (network) => types[network.type]?.needs?.(network),
      forwarding: new Forwarding(parts),
      ...{ inUse: nobody, attached: nobody, log },
    });
  const { portMaps = new PortMaps({ firewall, kernel }) } = parts;
  const ports = { ...parts, bridges };
  const types: NetworkTypes = {
    bridged: new Bridged(ports),
    'host-only': new HostOnly({ ...ports, portMaps }),
    macvtap: new Macvtap(ports),
    isolated: new Isolated({ kernel, journal, namespaces }),
    sriov: new Sriov({ kernel, journal, log }),
  };
  return types;
}
