import type { FoundDifference } from '#protocol/differences.ts';
import type { AttachmentRecord, Journal } from '../../storage/journal.ts';
import type { HostDevices } from './host-devices.ts';
import type { SeenLink } from './observe.ts';
import { Relapses } from './relapses.ts';

/** A device is closed if its MAC is changed this often within this time: that is no accident. */
const MAC_CHANGES = 3;
const MAC_CHANGES_MS = 10_000;

export interface MacChangesOptions {
  readonly journal: Pick<Journal, 'ofMac'>;
  readonly devices: Pick<HostDevices, 'putForwarding'>;
  /** Closes a device for good. */
  readonly close: (id: string, difference: FoundDifference) => void;
}

/**
 * Acts on changes of devices' MACs. The holder of a TAP may change its MAC (SIOCSIFHWADDR on the descriptor), also to
 * that of a neighbour. The bridge then gives the neighbour's frames to the host (fdb_add_local of net/bridge/br_fdb.c
 * drops the entry that was there). Nothing keeps a holder from this. So the agent puts the neighbour's entry back as
 * soon as the kernel reports the change, and closes the device if its holder repeats it.
 */
export class MacChanges {
  readonly #options: MacChangesOptions;
  readonly #changes = new Relapses({ limit: MAC_CHANGES, withinMs: MAC_CHANGES_MS });
  /**
   * The foreign MAC that a device has now, by attachment id. The kernel also reports other changes of the device: these
   * do not count.
   */
  readonly #foreign = new Map<string, string>();

  constructor(options: MacChangesOptions) {
    this.#options = options;
  }

  /** Takes a report of the kernel about a device. */
  note({ id, attachment, state }: AttachmentRecord, link: SeenLink): void {
    if (attachment === undefined || attachment.device === null) return;
    const { mac: own, ifindex, bridge } = attachment.device;
    if (link.index !== ifindex || link.mac === undefined) return;
    if (link.mac === own) {
      this.#foreign.delete(id);
      return;
    }
    // Also if the device is closed: somebody may have made it a port again.
    if (bridge !== undefined) this.#putBack({ id, bridge }, link.mac);
    if (state !== 'attached') return;
    if (this.#foreign.get(id) === link.mac) return;
    this.#foreign.set(id, link.mac);
    if (!this.#changes.note(id, performance.now())) return;
    this.#changes.forget(id);
    this.#foreign.delete(id);
    this.#options.close(id, { id, what: 'device.mac', expected: own, observed: link.mac });
  }

  #putBack({ id, bridge }: { readonly id: string; readonly bridge: string }, mac: string): void {
    const { journal, devices } = this.#options;
    for (const record of journal.ofMac(mac)) {
      const { attachment, network, state } = record;
      if (record.id === id || state !== 'attached' || network?.filter !== true) continue;
      if (attachment?.device?.bridge !== bridge) continue;
      devices.putForwarding({ ifindex: attachment.device.ifindex, mac: attachment.mac });
    }
  }
}
