import { Firewall } from '../firewall/firewall.ts';
import type { Config } from '../config.ts';
import type { Journal } from '../journal.ts';
import { Kernel } from '../kernel.ts';
import type { Log } from '../log.ts';
import { type HostDevices, openHostDevices } from '../reconcile/host-devices.ts';
import { Bridged } from './bridged.ts';
import { HostOnly } from './host-only.ts';
import { Isolated } from './isolated.ts';
import { Macvtap } from './macvtap.ts';
import type { NetworkTypes } from './network.ts';
import { taggedDevices } from './observe.ts';
import { PortMaps } from './port-maps.ts';
import { Removal } from './removal.ts';
import { Sriov } from './sriov.ts';

/** All of an agent that touches the kernel of its host. */
export interface HostNetwork {
  readonly networkTypes: NetworkTypes;
  readonly firewall: Pick<
    Firewall,
    'start' | 'restore' | 'onRestored' | 'problem' | typeof Symbol.dispose
  >;
  /** What reconcile looks at, and watches. */
  readonly devices: HostDevices;
  /** Names of all devices of ours on this host, by attachment id. */
  readonly taggedDevices: () => ReadonlyMap<string, string>;
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
  const bridged = new Bridged({ host, kernel, removal, journal, firewall, log });
  const portMaps = new PortMaps({ firewall, kernel });
  return {
    networkTypes: {
      bridged,
      'host-only': new HostOnly({ kernel, bridged, portMaps, log }),
      macvtap: new Macvtap({ kernel, removal, journal, firewall }),
      isolated: new Isolated({ journal }),
      sriov: new Sriov({ kernel, journal, log }),
    },
    firewall,
    devices: openHostDevices(kernel, removal),
    taggedDevices: () => taggedDevices(kernel),
  };
}
