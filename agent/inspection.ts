import type {
  Attachment,
  CheckAnswer,
  CheckRequest,
  Difference,
  ListAnswer,
  ListRequest,
} from '#protocol/attachment.ts';
import { encodeAnswer, MAX_ANSWER_BYTES } from '#protocol/envelope.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Ledger, Lease } from '#ipam-store/ledger.ts';
import type { Plan } from './reconcile/plan.ts';
import type { NetworkTypes } from './networks/network.ts';
import type { AttachmentRecord, Journal } from './journal.ts';

const LIST_LIMIT = 1_000;
// Room for the map around the elements and the cursor.
const LIST_BYTES = MAX_ANSWER_BYTES - 1_024;

/** Reading what this host has: get, list, and check against kernel and ledger. Nothing here changes anything. */
export class Inspection {
  readonly #host: string;
  readonly #journal: Journal;
  readonly #ledger: Ledger;
  readonly #networkTypes: NetworkTypes;
  readonly #taggedDevices: () => ReadonlyMap<string, string>;
  readonly #plan: (id?: string) => Plan;

  constructor(options: {
    host: string;
    journal: Journal;
    ledger: Ledger;
    networkTypes: NetworkTypes;
    /** Names of all devices of ours on this host, by attachment id. */
    taggedDevices: () => ReadonlyMap<string, string>;
    /** What reconcile would do now, for one attachment or all. */
    plan: (id?: string) => Plan;
  }) {
    this.#host = options.host;
    this.#journal = options.journal;
    this.#ledger = options.ledger;
    this.#networkTypes = options.networkTypes;
    this.#taggedDevices = options.taggedDevices;
    this.#plan = options.plan;
  }

  get(id: string): Attachment {
    const record = this.#journal.get(id);
    const attachment = record === undefined ? undefined : attachmentIn(record);
    if (attachment === undefined) {
      throw new VoltError('NOT_FOUND', `${id} is not attached on host ${this.#host}`);
    }
    return attachment;
  }

  /** One page, by id; `cursor` is the last id of the page before. */
  list(request: ListRequest): ListAnswer {
    const { network, workload, kind, state, cursor } = request;
    const limit = Math.min(request.limit ?? LIST_LIMIT, LIST_LIMIT);
    const matching = this.#journal
      .values()
      .filter(({ id }) => cursor === undefined || id > cursor)
      .map(attachmentIn)
      .filter((one) => one !== undefined)
      .filter(
        (one) =>
          (network === undefined || one.network === network) &&
          (workload === undefined || one.workload === workload) &&
          (kind === undefined || one.kind === kind) &&
          (state === undefined || one.state === state),
      )
      .toSorted((a, b) => (a.id < b.id ? -1 : 1));
    const attachments: Attachment[] = [];
    let bytes = 0;
    for (const one of matching.slice(0, limit)) {
      bytes += encodeAnswer(one).byteLength;
      if (bytes > LIST_BYTES) break;
      attachments.push(one);
    }
    const last = attachments.at(-1);
    if (last === undefined || attachments.length === matching.length) return { attachments };
    return { attachments, cursor: last.id };
  }

  /** Compares records, kernel and ledger: of one attachment, or of all and of what has no record. */
  async check({ id }: CheckRequest): Promise<CheckAnswer> {
    const records = id === undefined ? this.#journal.values() : [this.#recordOf(id)];
    const leases = await this.#leases(id);
    const differences: Difference[] = [];
    for (const record of records) {
      // The journal may have moved on while the ledger answered.
      const now = this.#journal.get(record.id);
      if (now?.state !== 'attached' || now.attachment === undefined) continue;
      differences.push(...(this.#networkTypes[now.networkType]?.observe(now.attachment) ?? []));
      differences.push(...compareLease(now.attachment, leases.get(record.id)));
    }
    let devices: ReadonlyMap<string, string> | undefined;
    for (const lease of leases.values()) {
      if (this.#journal.get(lease.id) !== undefined) continue;
      devices ??= this.#taggedDevices();
      const { addresses, generation } = lease;
      const observed = { addresses, generation, device: devices.get(lease.id) ?? null };
      differences.push({ id: lease.id, what: 'record', expected: null, observed });
    }
    const planned = this.#plan(id).actions.map(({ id: of, kind, differences: why }) => ({
      id: of,
      action: kind,
      reason: why.map(({ what }) => what).join(', '),
    }));
    const inSync = differences.length === 0 && planned.length === 0;
    return { inSync, differences, plan: planned };
  }

  #recordOf(id: string): AttachmentRecord {
    const record = this.#journal.get(id);
    if (record !== undefined) return record;
    throw new VoltError('NOT_FOUND', `${id} is not attached on host ${this.#host}`);
  }

  async #leases(id: string | undefined): Promise<Map<string, Lease>> {
    const leases = new Map<string, Lease>();
    if (id !== undefined) {
      const lease = await this.#ledger.getLease(id);
      if (lease !== null) leases.set(id, lease);
      return leases;
    }
    let cursor: string | undefined;
    do {
      const page = await this.#ledger.listLeases({
        host: this.#host,
        ...(cursor !== undefined && { cursor }),
      });
      for (const lease of page.leases) leases.set(lease.id, lease);
      ({ cursor } = page);
    } while (cursor !== undefined);
    return leases;
  }
}

function attachmentIn(record: AttachmentRecord): Attachment | undefined {
  const { attachment, state } = record;
  return attachment === undefined ? undefined : { ...attachment, state };
}

function compareLease(attachment: Attachment, lease: Lease | undefined): Difference[] {
  const { id, generation, host, mac } = attachment;
  const addresses = attachment.addresses.map(({ address }) => address);
  const expected = { generation, host, mac, addresses };
  const observed = lease && {
    generation: lease.generation,
    host: lease.host,
    mac: lease.mac,
    addresses: lease.addresses,
  };
  if (observed !== undefined && JSON.stringify(expected) === JSON.stringify(observed)) return [];
  return [{ id, what: 'lease', expected, observed: observed ?? null }];
}
