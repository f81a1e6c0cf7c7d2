import type { Network } from '#protocol/network.ts';
import type { LetGo } from '#ipam-store/ledger.ts';
import type { Steps } from '#native/steps.ts';
import type { KernelOperation } from '#native/trace.ts';
import { Firewall } from '../firewall/firewall.ts';
import type { Config } from '../../config.ts';
import type { Journal } from '../../storage/journal.ts';
import { Kernel } from '../kernel.ts';
import type { Log } from '../../log.ts';
import { type HostDevices, openHostDevices } from '../reconcile/host-devices.ts';
import { Bridged } from './bridged.ts';
import { bridgedNetworks, reviseBridges } from './gateways.ts';
import { HostOnly } from './host-only.ts';
import { Isolated } from './isolated.ts';
import { Macvtap } from './macvtap.ts';
import type { NetworkTypes } from './network-type.ts';
import type { DryRunOrder } from './dry-run.ts';
import { DryRuns } from './dry-runs.ts';
import { taggedDevices } from './observe.ts';
import { PortMaps } from './port-maps.ts';
import { Removal } from './removal.ts';
import { Sriov } from './sriov.ts';
import { WorkloadNamespaces } from './workload-namespaces.ts';

/** All of an agent that touches the kernel of its host. */
export interface HostNetwork {
  readonly networkTypes: NetworkTypes;
  readonly firewall: Pick<
    Firewall,
    'start' | 'restore' | 'onRestored' | 'problem' | typeof Symbol.dispose
  >;
  /** Looks up what `netns` of a request leads to. */
  readonly namespaces: Pick<WorkloadNamespaces, 'find'>;
  /** What reconcile looks at, and watches. */
  readonly devices: HostDevices;
  readonly dryRuns: {
    /**
     * The changes that an attach would make in the kernel; makes none on the host. DEADLINE_EXCEEDED where it takes
     * longer than until `deadline` (`performance.now()` time).
     */
    readonly dryRun: (order: DryRunOrder, deadline: number) => Promise<readonly KernelOperation[]>;
    readonly close: () => Promise<void>;
  };
  /** Names of all devices of ours on this host, by attachment id. */
  readonly taggedDevices: () => Steps<ReadonlyMap<string, string>>;
  readonly bridges: {
    /** The networks of whose bridges this host has one. */
    readonly networks: () => readonly string[];
    /** Gives the bridges of ours what these networks say, and takes the rest from them (`reviseBridges`). */
    readonly revise: (
      networks: ReadonlyMap<string, Network>,
      letGo: readonly LetGo[],
      unknown: ReadonlySet<string>,
    ) => void;
  };
}

/** The network types of this host, over one kernel and one firewall. */
export function openHostNetwork(options: {
  readonly config: Pick<Config, 'host' | 'nftablesTable'>;
  readonly journal: Journal;
  readonly log: Log;
}): HostNetwork {
  const { config, journal, log } = options;
  const { host, nftablesTable } = config;
  const kernel = new Kernel();
  const removal = new Removal(new Kernel(), log);
  const firewall = new Firewall({ log, table: nftablesTable });
  const dryRuns = new DryRuns({ settings: { host, nftablesTable }, log });
  const namespaces = new WorkloadNamespaces({ journal });
  return {
    networkTypes: networkTypesOver({ host, kernel, removal, journal, firewall, namespaces, log }),
    firewall,
    namespaces,
    devices: openHostDevices(kernel, removal),
    dryRuns: {
      dryRun: (order, deadline) => {
        const knowsBridge = firewall.has(`bridge:${order.network.bridge}`);
        return dryRuns.dryRun({ ...order, knowsBridge }, deadline);
      },
      close: () => dryRuns.close(),
    },
    taggedDevices,
    bridges: {
      networks: () => bridgedNetworks(kernel),
      revise: (networks, letGo, unknown) => reviseBridges(kernel, networks, letGo, unknown),
    },
  };
}

/** The network types over one kernel and one firewall. */
export function networkTypesOver(parts: {
  readonly host: string;
  readonly kernel: Kernel;
  readonly removal: Removal;
  readonly journal: Pick<Journal, 'namesDevice' | 'get' | 'values'>;
  readonly firewall: Firewall;
  /** Those that requests name; a dry run's are of its own. */
  readonly namespaces?: WorkloadNamespaces;
  readonly log: Log;
  readonly findDevice?: () => string;
}): NetworkTypes {
  const { kernel, journal, firewall, log } = parts;
  const namespaces = parts.namespaces ?? new WorkloadNamespaces(parts);
  const bridged = new Bridged(parts);
  const portMaps = new PortMaps({ firewall, kernel });
  return {
    bridged,
    'host-only': new HostOnly({ kernel, bridged, portMaps, log }),
    macvtap: new Macvtap(parts),
    isolated: new Isolated({ journal, namespaces }),
    sriov: new Sriov({ kernel, journal, log }),
  };
}
