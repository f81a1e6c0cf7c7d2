import { VoltError } from '#protocol/errors.ts';
import { isKernelError } from '#native/errors.ts';
import { parseLink } from '#native/link.ts';
import { subscribe } from '#native/netlink-events.ts';
import {
  AF_BRIDGE,
  RTM_DELADDR,
  RTM_DELLINK,
  RTM_NEWLINK,
  RTNLGRP_IPV4_IFADDR,
  RTNLGRP_IPV6_IFADDR,
  RTNLGRP_LINK,
} from '#native/rtnetlink.ts';
import type { Steps } from '#native/steps.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import { putForwarding } from '../networks/bridge-port.ts';
import { isStill } from '../ownership.ts';
import type { Removal } from '../networks/removal.ts';
import {
  type Looking,
  lookUp,
  type Observed,
  observeHost,
  seen,
  type SeenLink,
} from './observe.ts';

export interface ChangeHandlers {
  /** A device was made or changed, or deleted (`gone`). Changes by this process are reported, too. */
  readonly onLink: (link: SeenLink, gone: boolean) => void;
  readonly onAddressGone: (ifindex: number) => void;
  /** Reports of changes were lost: everything has to be read again. */
  readonly onOverrun: () => void;
}

/** The devices of this host, for reconcile: observes and watches them, and deletes those that belong to nobody. */
export interface HostDevices {
  /**
   * Observes the whole host, and the namespaces of these records; requests may change them between two steps. `deep`:
   * also reads what only a check reports, for example inside workloads' namespaces.
   */
  observe(records: readonly AttachmentRecord[], options?: { deep: boolean }): Steps<Observed>;
  /** Observes the devices of these records alone. */
  lookUp(records: readonly AttachmentRecord[], options?: { deep: boolean }): Steps<Observed>;
  watch(handlers: ChangeHandlers): Disposable;
  /** Makes the bridge forward frames for a workload to its port. Success if the device is no port of a bridge. */
  putForwarding(way: { readonly ifindex: number; readonly mac: string }): void;
  /** Deletes the device with this index, if it still has this name, alias and group. */
  remove(device: SeenLink): Promise<void>;
}

const IFA_INDEX_OFFSET = 4;

export const openHostDevices = ({
  removal,
  ...looking
}: Omit<Looking, 'deep'> & { readonly removal: Removal }): HostDevices => ({
  observe: (records, { deep } = { deep: false }) => observeHost({ ...looking, deep }, records),
  lookUp: (records, { deep } = { deep: false }) => lookUp({ ...looking, deep }, records),
  remove: async ({ index, name, alias, group }) => {
    const link = looking.kernel.links.get(index);
    if (link?.name !== name || !isStill({ alias }, link) || link.group !== group) return;
    await removal.delete({ index, alias });
  },
  putForwarding: ({ ifindex, mac }) => {
    try {
      putForwarding(looking.kernel, { index: ifindex }, mac);
    } catch (error) {
      // The device is gone or no port, or another port has the MAC for good: the next comparison reports the
      // difference.
      const taken = error instanceof VoltError && error.code === 'MAC_IN_USE';
      if (!taken && !isKernelError(error, 'ENODEV', 'EINVAL', 'ENOENT')) throw error;
    }
  },
  watch: ({ onLink, onAddressGone, onOverrun }) =>
    subscribe([RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR], {
      onMessage: (message) => {
        if (message.type === RTM_DELADDR)
          onAddressGone(message.body.readUInt32LE(IFA_INDEX_OFFSET));
        if (message.type !== RTM_NEWLINK && message.type !== RTM_DELLINK) return;
        // The kernel reports a change of a bridge port also as a change of the device itself.
        if (message.body.readUInt8(0) === AF_BRIDGE) return;
        onLink(seen(parseLink(message)), message.type === RTM_DELLINK);
      },
      onOverrun,
    }),
});
