import type { Pulse, Self } from '#ipam-store/ledger.ts';
import type { EventDraft, EventLog } from '../storage/events.ts';
import type { HostLeases, Settled } from '../attachments/host-leases.ts';

/** What the answer to a heartbeat says of how this host came. */
export type Arrival = Pick<Pulse, 'before' | 'rebooted' | 'nowMs'>;

export interface FleetEventsOptions {
  readonly self: Self;
  readonly events: Pick<EventLog, 'add'>;
  readonly hostLeases: Pick<HostLeases, 'tellEnd'>;
}

/** Tells the fleet what a heartbeat of this host has brought about. */
export class FleetEvents {
  readonly #options: FleetEventsOptions;

  constructor(options: FleetEventsOptions) {
    this.#options = options;
  }

  tell({ epoch, began, ended, awaiting, missed, fallen, reclaimed, nowMs }: Pulse): void {
    if (began) this.#add('recovering', 'ledger', epoch, { epoch, awaiting });
    if (ended) this.#add('recovered', 'ledger', epoch, { epoch, missed });
    for (const host of fallen) this.#add('suspect', host, `${host}-${nowMs}`, { host });
    for (const lease of reclaimed) this.#options.hostLeases.tellEnd(lease, 'reclaimed');
  }

  tellArrival({ before, rebooted, nowMs }: Arrival, settled: Settled): void {
    const { host, bootId } = this.#options.self;
    const body = { host, bootId, before: before ?? 'unknown', rebooted, ...settled };
    this.#add('host-up', host, String(nowMs), body);
  }

  #add<Type extends 'recovering' | 'recovered' | 'suspect' | 'host-up'>(
    type: Type,
    subject: string,
    which: string,
    body: EventDraft<Type>['body'],
  ): void {
    const requestId = `${type}-${which}`;
    const draft = { type, network: '-', subject, operation: type, requestId, trace: {}, body };
    this.#options.events.add<Type>(draft);
  }
}
