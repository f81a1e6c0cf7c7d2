import type { Difference } from '#protocol/attachment.ts';
import type { AttachmentRecord, Journal } from '../../storage/journal.ts';
import type { HostDevices } from './host-devices.ts';
import type { SeenLink } from './observe.ts';
import { Relapses } from './relapses.ts';

/** So many changes of a device's MAC, within so long, are no accident: the device is closed. */
const MAC_CHANGES = 3;
const MAC_CHANGES_MS = 10_000;

export interface MacChangesOptions {
  readonly journal: Pick<Journal, 'ofMac'>;
  readonly devices: Pick<HostDevices, 'putForwarding'>;
  /** Closes a device for good. */
  readonly close: (id: string, difference: Difference) => void;
}

/**
 * Changes of devices' MACs. Whoever holds a TAP may change its MAC (SIOCSIFHWADDR on the descriptor), also to that of a
 * neighbour, and the bridge then gives the neighbour's frames to the host (fdb_add_local of net/bridge/br_fdb.c drops
 * what entry there was). Nothing keeps a holder from it. So the neighbour's entry is put back in the moment in which the
 * kernel tells of the change, and who does it again is closed.
 */
export class MacChanges {
  readonly #options: MacChangesOptions;
  readonly #changes = new Relapses({ limit: MAC_CHANGES, withinMs: MAC_CHANGES_MS });
  /** The MAC that is not its own, of devices that have one: the kernel tells of other changes, too. */
  readonly #foreign = new Map<string, string>();

  constructor(options: MacChangesOptions) {
    this.#options = options;
  }

  /** What the kernel tells of a device. */
  note({ id, attachment, state }: AttachmentRecord, link: SeenLink): void {
    if (attachment === undefined || attachment.device === null) return;
    const { mac: own, ifindex, bridge } = attachment.device;
    if (link.index !== ifindex || link.mac === undefined) return;
    if (link.mac === own) {
      this.#foreign.delete(id);
      return;
    }
    // Also of one that is closed, and that somebody has made a port again.
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
