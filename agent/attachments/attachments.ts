import { setTimeout as sleep } from 'node:timers/promises';
import {
  type Attachment,
  type AttachAnswer,
  type AttachRequest,
  contentKey,
  type DetachAnswer,
  type DetachRequest,
  type DryRunAnswer,
} from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import { workloadDns } from '#protocol/guest-services.ts';
import type { Network } from '#protocol/network.ts';
import {
  type Ledger,
  type Lease,
  type LeaseRequest,
  RevisionChanged,
  type Self,
} from '#ipam-store/ledger.ts';
import { endedLease, type EventLog } from '../storage/events.ts';
import { mayHaveBeenDone } from '../errors.ts';
import type { AttachmentRecord, DetachIntent, Journal } from '../storage/journal.ts';
import type { Log } from '../log.ts';
import type { Cordon } from '../fleet/cordon.ts';
import type { Detaches } from './detaches.ts';
import { type Position, storedPosition } from './request-log.ts';
import type {
  AttachedDevice,
  CheckedAttach,
  NetworkType,
  NetworkTypes,
} from '../host/networks/network-type.ts';
import type { HostAttachments } from '../host/host-attachments.ts';
import { remake } from '../host/reconcile/remake.ts';
import { tellRepaired } from '../host/reconcile/repairs.ts';
import type { HostNetwork } from '../host/networks/types.ts';
import type { NamedNamespace } from '../host/networks/workload.ts';
import type { IdLocks } from '../schedule/id-lock.ts';
import type { Stretches } from '../schedule/stretches.ts';
import type { LedgerWatermark } from '../fleet/ledger-watermark.ts';
import { phases, repairs } from '../measure.ts';
import { type RequestTrace, tracedStep, tracedStepSync } from '../trace.ts';

/** The trace of a request, and until when its caller waits (`performance.now()` time). */
export interface Call {
  readonly trace: RequestTrace;
  readonly deadline: number;
  /** The request's place in the order of the job stream; undefined if it has none. */
  readonly position?: Position | undefined;
}

export interface AttachmentsOptions {
  readonly self: Self;
  readonly ledger: Ledger;
  readonly watermark: LedgerWatermark;
  readonly journal: Journal;
  readonly events: EventLog;
  readonly networkTypes: NetworkTypes;
  readonly attachments: Pick<HostAttachments, 'compare' | 'mend' | 'resume' | 'hasLeftover'>;
  readonly cordon: Pick<Cordon, 'refuseNew'>;
  readonly dryRuns: HostNetwork['dryRuns'];
  readonly namespaces: HostNetwork['namespaces'];
  readonly locks: IdLocks;
  readonly detaches: Detaches;
  readonly stretches: Stretches;
  /** The host's own addresses in a network's subnets: the ledger grants none of them. Default: none. */
  readonly ownAddresses: HostNetwork['ownAddresses'];
  /** Why workloads of a network may have no traffic on this host. */
  readonly warningsOf: (network: string) => readonly string[];
  readonly log: Log;
}

/** Most attachments have no routes, labels and so on: thousands of records share the same nothing. */
const NO_LIST: never[] = [];
const NO_FIELDS = Object.freeze({});

interface Revised {
  readonly network: Network;
  readonly revision: number;
}

interface Making {
  readonly request: AttachRequest & { readonly requestId: string };
  readonly revised: Revised;
  readonly checked: CheckedAttach;
  readonly record: AttachmentRecord;
  /** What the id has had before: a container that starts again elsewhere. If this attach fails, it stays as it was. */
  readonly held: AttachmentRecord | undefined;
  readonly call: Call;
}

const REVISION_TRIES = 3;
/** Errors from the network's definition, found before the ledger compares its revision: it may be an old one. */
const REFUSED_BY_NETWORK: ReadonlySet<string> = new Set([
  'ADDRESS_OUT_OF_RANGE',
  'ADDRESS_IN_USE',
  'UNSUPPORTED',
]);
/** Longer than a dry run takes when nothing is wrong. */
const MAX_DRY_RUN_MS = 5_000;

/**
 * Attaches and detaches on this host: lease, device, record and event. Requests for one id run one after the other.
 * The kernel work of one attach is synchronous, without a pause.
 */
export class Attachments {
  readonly #options: AttachmentsOptions;
  readonly #networks = new Map<string, Revised>();

  constructor(options: AttachmentsOptions) {
    this.#options = options;
  }

  /** Detaches the attachments that an earlier agent of this host left unfinished. */
  resume(): void {
    for (const record of this.#options.journal.values()) {
      if (record.state === 'attached' || record.state === 'fenced') continue;
      this.#options.detaches.begin(
        record,
        record.detach ?? {
          reason: 'interrupted',
          requestId: `interrupted-${record.id}-${record.createdAt}`,
          startedAt: new Date().toISOString(),
        },
      );
    }
  }

  /** Waits for the work under way, `timeoutMs` at most. The next agent finishes the rest (`resume`). */
  async stop(timeoutMs: number): Promise<void> {
    const idle = this.#options.locks.idle().then(() => this.#options.detaches.idle());
    await Promise.race([idle, sleep(timeoutMs, undefined, { ref: false })]);
    this.#options.detaches.stop();
  }

  /**
   * Gives a workload its device and addresses, or returns the attachment that it has already (`replayed`). The caller
   * holds the lock of the id.
   */
  async attach(request: Making['request'], call: Call): Promise<AttachAnswer> {
    const fenced = this.#options.journal.get(request.id);
    if (fenced?.state === 'fenced') {
      this.#options.detaches.begin(fenced, { ...this.#ending(request, call), reason: 'fenced' });
    }
    await this.#options.detaches.finished(request.id, call.deadline);
    return this.#ofLastRevision(request.network, call.deadline, async () => {
      using named = await this.#named(request);
      const asked = identified(request, named);
      const { identity, key } = asked;
      const held = this.#options.journal.get(request.id);
      // A repeat is looked for first: it needs no network definition from the ledger.
      const replayed = held && (await this.#repeat(held, request, asked, call.deadline));
      if (replayed !== undefined) {
        if (call.position !== undefined) this.#announceRepeat(request, call);
        return replayed;
      }
      if (held === undefined) this.#options.cordon.refuseNew();
      const revised = await this.#network(request.network, call.deadline);
      const type = this.#networkType(revised.network.type);
      using checked = type.check(request, revised.network, { named });
      const record: AttachmentRecord = {
        id: request.id,
        state: 'attaching',
        networkType: revised.network.type,
        request,
        contentKey: key,
        createdAt: new Date().toISOString(),
        bootId: this.#options.self.bootId,
        seenGeneration: this.#options.watermark.seen.generation,
        deviceName: checked.deviceName,
        network: withoutAddresses(revised.network),
        revision: revised.revision,
        ...(identity !== undefined && { namespaceIdentity: identity }),
        ...(checked.before !== undefined && { before: checked.before }),
        // Its addresses were in use.
        ...(held?.attachment !== undefined && { attachment: held.attachment }),
      };
      return await this.#make({ request, revised, checked, record, held, call });
    });
  }

  /** The type of a network that was read; undefined if it was not. */
  typeOf(network: string): Network['type'] | undefined {
    return this.#networks.get(network)?.network.type;
  }

  /** What `attach` would do now, or the error that it would throw. Changes nothing and publishes no event. */
  async dryRun(request: AttachRequest, call: Call): Promise<DryRunAnswer> {
    // Other requests for this id wait until the dry run ends, so its time is limited.
    const deadline = Math.min(call.deadline, performance.now() + MAX_DRY_RUN_MS);
    const { locks, detaches, journal, ledger } = this.#options;
    return locks.take(request.id, deadline, async () => {
      await detaches.finished(request.id, deadline);
      return this.#ofLastRevision(request.network, deadline, async () => {
        using named = await this.#named(request);
        const held = journal.get(request.id);
        const attachment =
          held && (await this.#attachedAs(held, request, identified(request, named)));
        if (
          attachment !== undefined &&
          held?.state === 'attached' &&
          this.#options.attachments.compare({ ...held, attachment }).remedy === 'none'
        ) {
          const { mac } = attachment;
          const addresses = attachment.addresses.map(({ address }) => address);
          return { dryRun: true, replayed: true, lease: { mac, addresses }, operations: [] };
        }
        if (held === undefined) this.#options.cordon.refuseNew();
        const revised = await this.#network(request.network, deadline);
        const { network } = revised;
        const known = { deviceName: held?.deviceName, named };
        using checked = this.#networkType(network.type).check(request, network, known);
        checked.prepare();
        const ask = this.#askFor(request, revised);
        const { lease } = await ledger.preview(ask, { deadline });
        const madeNamespace = checked.before?.['madeNamespace'];
        const order = {
          request,
          network,
          lease,
          deviceName: checked.deviceName,
          ...(typeof madeNamespace === 'string' && { madeNamespace }),
        };
        const operations = await this.#options.dryRuns.dryRun(order, deadline);
        const { mac, addresses } = lease;
        return {
          dryRun: true,
          replayed: false,
          lease: { mac, addresses: [...addresses] },
          operations: [...operations],
        };
      });
    });
  }

  async #named({ netns }: AttachRequest): Promise<(NamedNamespace & Disposable) | undefined> {
    return netns === undefined ? undefined : this.#options.namespaces.find(netns);
  }

  /** Does the work. If the network has changed since it was read, reads it and does the work again. */
  async #ofLastRevision<T>(network: string, deadline: number, work: () => Promise<T>): Promise<T> {
    for (let tries = 1; ; tries += 1) {
      try {
        return await work();
      } catch (error) {
        if (tries === REVISION_TRIES) throw error;
        const isOld =
          error instanceof RevisionChanged ||
          (await this.#isRefusedByOld(network, deadline, error));
        if (!isOld) throw error;
        this.#networks.delete(network);
      }
    }
  }

  /** Whether a request was refused by a cached definition that is not the current one. */
  async #isRefusedByOld(network: string, deadline: number, error: unknown): Promise<boolean> {
    const cached = this.#networks.get(network);
    const refused = error instanceof VoltError && REFUSED_BY_NETWORK.has(error.code);
    if (cached === undefined || !refused) return false;
    const now = await this.#options.ledger.getNetwork(network, { deadline }).catch(() => null);
    return now !== null && now.revision !== cached.revision;
  }

  /**
   * The existing attachment, if the request has the same content. Undefined if the namespace of that attachment is gone
   * and the request names another: the container was started again. Throws ALREADY_ATTACHED for other content.
   */
  async #attachedAs(
    held: AttachmentRecord,
    request: AttachRequest,
    { identity, key }: Identified,
  ): Promise<Attachment | undefined> {
    const { id, attachment, generation, namespaceIdentity: before } = held;
    const isHeld = (one: string): boolean => [held.contentKey, held.updatedKey].includes(one);
    if (attachment !== undefined && isHeld(key)) return attachment;
    const moved =
      attachment !== undefined &&
      identity !== undefined &&
      before !== undefined &&
      isHeld(contentKey(request, { netns: before }));
    if (moved && (await this.#options.namespaces.hasLeft(held))) return undefined;
    throw new VoltError('ALREADY_ATTACHED', `${id} is attached with other content`, {
      details: { id, generation },
    });
  }

  /**
   * Closes the port at once and answers. The deletion of the device, the release of the lease and the `detached` event
   * follow. The caller holds the lock of the id.
   */
  async detach(
    request: DetachRequest & { readonly requestId: string },
    call: Call,
  ): Promise<DetachAnswer> {
    const { id, generation, requestId } = request;
    const record = this.#options.journal.get(id);
    if (record === undefined) return this.#detachUnknown(request, call);
    if (record.state === 'detaching') return { detached: true, releasing: true };
    refuseOtherGeneration(record, generation);
    const { detaches, stretches } = this.#options;
    const intent: DetachIntent = {
      reason: 'requested',
      requestId,
      ...(generation !== undefined && { generation }),
      ...storedPosition(call.position),
      startedAt: new Date().toISOString(),
      ...traceOf(call.trace),
    };
    await stretches.run(() => detaches.begin(record, intent));
    return { detached: true, releasing: true };
  }

  /**
   * The answer to a repeated request. A device that differs is repaired in place, so that its holder keeps it; one that
   * is gone is made again, and if that fails the attachment stays. Undefined if it has to be attached anew, elsewhere.
   */
  async #repeat(
    held: AttachmentRecord,
    request: AttachRequest,
    asked: Identified,
    deadline: number,
  ): Promise<AttachAnswer | undefined> {
    const { journal, attachments, log, self } = this.#options;
    const { id } = request;
    const attachment = await this.#attachedAs(held, request, asked);
    if (attachment === undefined) {
      log.info({ id }, 'namespace of the attachment is gone: attached in another');
      await this.#networkType(held.networkType).detach(held).removed;
      return undefined;
    }
    const record = { ...held, attachment };
    const { remedy, differences, reported } = attachments.compare(record);
    if (reported.length > 0) {
      log.warn(
        { id, differences: reported },
        "difference inside the workload's namespace: left to the workload",
      );
    }
    const { network } = record;
    if (remedy !== 'none' && network === undefined) {
      // Of an earlier release: the ledger grants the same addresses to the same id again.
      log.warn({ id, differences }, 'device cannot be repaired: attached anew');
      await this.#networkType(held.networkType).detach(held).removed;
      return undefined;
    }
    let now = attachment;
    if (remedy === 'remake' && network !== undefined) {
      const type = this.#networkType(held.networkType);
      const { bootId } = self;
      now = await remake({ journal, bootId, attachments }, type, { ...record, network });
    } else if (remedy === 'mend' && network !== undefined) {
      attachments.mend({ ...record, network });
    }
    if (remedy === 'mend' || remedy === 'remake') {
      tellRepaired({ ...this.#options, host: self.host }, id, remedy, differences);
      repairs.note({ action: remedy, result: 'done' });
    }
    const replayed = remedy !== 'remake';
    if (request.leaseTtlSeconds === undefined) return { attachment: now, replayed };
    const revised = await this.#network(request.network, deadline);
    const lease = await this.#acquire(request, revised, deadline);
    const extended = { ...now, lease: leaseFields(lease) };
    journal.put({ ...(journal.get(id) ?? held), attachment: extended });
    return { attachment: extended, replayed };
  }

  /** Makes lease, device, record and event. If one fails, those before it are undone. */
  async #make(making: Making): Promise<AttachAnswer> {
    const { request, revised, checked, record, held, call } = making;
    const { journal, stretches } = this.#options;
    const started = performance.now();
    journal.put(record);
    const granting = tracedStep('ipam', () => this.#acquire(request, revised, call.deadline));
    // The ledger client sends its requests at the next tick. The code below runs while the ledger works.
    await new Promise<void>((resolve) => {
      process.nextTick(resolve);
    });
    const obstacle = failureOf(() => checked.prepare());
    let lease: Lease;
    try {
      lease = await granting;
    } catch (error) {
      if (held !== undefined) journal.put(held);
      else if (mayHaveBeenDone(error))
        this.#options.detaches.begin(record, this.#failure(request, call));
      else journal.remove(record.id);
      throw error;
    }
    const ipamMs = performance.now() - started;
    try {
      if (obstacle !== undefined) throw obstacle.error;
      const attachment = await stretches.run(() => this.#makeNow(making, lease, ipamMs));
      const warnings = this.#options.warningsOf(request.network);
      return {
        attachment,
        replayed: false,
        ...(warnings.length > 0 && { warnings: [...warnings] }),
      };
    } catch (error) {
      if (held !== undefined) {
        journal.put(held);
        throw error;
      }
      // The second half of a detach removes what the undo left, and releases the lease.
      this.#options.detaches.begin(
        { ...record, generation: lease.generation },
        this.#failure(request, call),
      );
      await this.#options.detaches.finished(record.id, call.deadline).catch(() => {});
      throw error;
    }
  }

  /** Device, record and announcement, in one stretch. `ipamMs`: how long the lease took. */
  #makeNow(
    { request, revised, checked, record, call }: Making,
    lease: Lease,
    ipamMs: number,
  ): Attachment {
    const began = performance.now();
    using undo = new DisposableStack();
    const made = tracedStepSync('kernel', () => checked.attach(lease, undo));
    const kernelMs = performance.now() - began;
    const { network } = revised;
    const attachment = this.#attachmentOf({ request, network, lease, made, record });
    this.#options.events.putAttached(
      { ...record, state: 'attached', generation: lease.generation, attachment },
      {
        requestId: request.requestId,
        ...storedPosition(call.position),
        durationMs: { ipam: ipamMs, kernel: kernelMs },
        ...traceOf(call.trace),
      },
    );
    undo.move();
    const of = { operation: 'attach', type: network.type, result: 'ok' } as const;
    phases.note({ ...of, phase: 'ipam', ms: ipamMs });
    phases.note({ ...of, phase: 'kernel', ms: kernelMs });
    return attachment;
  }

  /** Each job has an `attached` event of its own, even if it found its attachment there already. */
  #announceRepeat(request: Making['request'], { position, trace }: Call): void {
    const { journal, events } = this.#options;
    const held = journal.get(request.id);
    if (held === undefined) return;
    const { requestId, ...repeat } = request;
    const untold = { requestId, ...storedPosition(position), durationMs: {}, ...traceOf(trace) };
    events.putAttached(held, { ...untold, repeat });
  }

  async #acquire(request: AttachRequest, revised: Revised, deadline: number): Promise<Lease> {
    const { ledger, watermark } = this.#options;
    const own = this.#options.ownAddresses(revised.network);
    const ask = this.#askFor(request, revised, own);
    try {
      const { lease } = await ledger.acquire(ask, { deadline });
      watermark.noteGeneration(lease.generation);
      return lease;
    } catch (error) {
      throw withDevice(error, own);
    }
  }

  #askFor(
    request: AttachRequest,
    { network, revision }: Revised,
    own = this.#options.ownAddresses(network),
  ): LeaseRequest {
    const { self } = this.#options;
    const avoid = [...own.keys()];
    const { id, workload, kind, mac, addresses, hostname, leaseTtlSeconds } = request;
    return {
      id,
      workload,
      kind,
      network,
      revision,
      ...self,
      ...(mac !== undefined && { mac }),
      ...(addresses !== undefined && { addresses }),
      ...(hostname !== undefined && { hostname }),
      ...(leaseTtlSeconds !== undefined && { ttlSeconds: leaseTtlSeconds }),
      ...(avoid.length > 0 && { avoid }),
    };
  }

  #networkType(name: Network['type']): NetworkType {
    const type = this.#options.networkTypes[name];
    if (type !== undefined) return type;
    throw new VoltError('UNSUPPORTED', `network type ${name} is not supported`);
  }

  async #network(name: string, deadline: number): Promise<Revised> {
    const cached = this.#networks.get(name);
    if (cached !== undefined) return cached;
    const found = await this.#options.ledger.getNetwork(name, { deadline });
    if (found === null) throw new VoltError('UNKNOWN_NETWORK', `there is no network ${name}`);
    const revised = { network: found.network, revision: found.revision };
    this.#networks.set(name, revised);
    this.#options.watermark.noteNetwork(revised);
    return revised;
  }

  #attachmentOf(parts: {
    request: AttachRequest;
    network: Network;
    lease: Lease;
    made: AttachedDevice;
    record: AttachmentRecord;
  }): Attachment {
    const { request, network, lease, made, record } = parts;
    const netns = made.netns ?? request.netns;
    const gateways = [network.gateway, network.ipv6?.gateway];
    return {
      id: request.id,
      generation: lease.generation,
      workload: request.workload,
      kind: request.kind,
      network: network.network,
      type: network.type,
      host: this.#options.self.host,
      state: 'attached',
      mac: lease.mac,
      device: made.device,
      filter: made.filter,
      ...(netns !== undefined && { netns }),
      addresses: lease.addresses.map((address) => {
        const gateway = gateways.find((one) => one?.includes(':') === address.includes(':'));
        return gateway === undefined ? { address } : { address, gateway };
      }),
      routes: network.routes ?? NO_LIST,
      dns: workloadDns(network),
      ports: request.ports ?? NO_LIST,
      bandwidth: request.bandwidth ?? NO_FIELDS,
      lease: leaseFields(lease),
      createdAt: record.createdAt,
      labels: request.labels ?? NO_FIELDS,
    };
  }

  #failure(request: Making['request'], call: Call): DetachIntent {
    return { ...this.#ending(request, call), reason: 'failed' };
  }

  #ending({ requestId }: Making['request'], { trace }: Call): Omit<DetachIntent, 'reason'> {
    return {
      requestId,
      startedAt: new Date().toISOString(),
      ...traceOf(trace),
    };
  }

  /** Detaches an id without a record here: it is on another host, has a lease without a device, or is unknown. */
  async #detachUnknown(
    { id, generation, requestId }: DetachRequest & { readonly requestId: string },
    { trace }: Call,
  ): Promise<DetachAnswer> {
    const { ledger, self, events } = this.#options;
    const lease = await ledger.getLease(id);
    if (lease === null) return { detached: false, releasing: false };
    if (lease.host !== self.host) {
      throw new VoltError('WRONG_HOST', `${id} is attached on host ${lease.host}`, {
        details: { host: lease.host },
      });
    }
    refuseOtherGeneration(lease, generation);
    const ending = { ...self, id, generation: lease.generation, cool: true };
    await ledger.release(ending);
    events.add({
      type: 'detached',
      network: lease.network,
      subject: id,
      operation: 'detach',
      requestId,
      trace,
      body: endedLease(lease, 'requested'),
    });
    return { detached: true, releasing: false };
  }
}

/** The content of a request, as a key to compare it with other requests. */
interface Identified {
  /** The identity of the namespace that the request names. */
  readonly identity: string | undefined;
  readonly key: string;
}

/** A namespace is identified by its device and inode, not by its path. */
function identified(request: AttachRequest, named: NamedNamespace | undefined): Identified {
  const { identity } = named ?? {};
  return { identity, key: contentKey(request, identity === undefined ? {} : { netns: identity }) };
}

/** Adds the device of the host that has the address: the ledger does not know it. */
function withDevice(error: unknown, own: ReadonlyMap<string, string>): unknown {
  if (!(error instanceof VoltError) || error.code !== 'ADDRESS_OUT_OF_RANGE') return error;
  const { address } = error.details ?? {};
  const device = typeof address === 'string' ? own.get(address) : undefined;
  if (device === undefined) return error;
  return new VoltError(error.code, `${error.message}, on ${device}`, {
    details: { ...error.details, device },
    cause: error,
  });
}

/** Does the work and returns its error, to be thrown later; undefined if it succeeds. */
function failureOf(work: () => void): { readonly error: unknown } | undefined {
  try {
    work();
    return undefined;
  } catch (error) {
    return { error };
  }
}

/** Throws STALE_GENERATION for an older generation, INVALID_REQUEST for one that was never given out. */
export function refuseOtherGeneration(
  held: { readonly id: string; readonly generation?: number },
  asked: number | undefined,
): void {
  if (asked === undefined || held.generation === undefined || asked === held.generation) return;
  if (asked < held.generation) {
    throw new VoltError(
      'STALE_GENERATION',
      `${held.id} has generation ${held.generation}, the request is for ${asked}`,
      { details: { generation: held.generation } },
    );
  }
  throw new VoltError('INVALID_REQUEST', `generation ${asked} of ${held.id} was never given out`, {
    details: { path: 'generation', generation: held.generation },
  });
}

const traceOf = ({
  traceparent,
  tracestate,
}: RequestTrace): { traceparent?: string; tracestate?: string } => ({
  ...(traceparent !== undefined && { traceparent }),
  ...(tracestate !== undefined && { tracestate }),
});

/** By definition: thousands of records share one. */
const bare = new WeakMap<Network, Network>();

/** Leaves out pool, reservations and exclusions: they can be large, and no device needs them. */
export function withoutAddresses(network: Network): Network {
  const known = bare.get(network) ?? stripped(network);
  bare.set(network, known);
  return known;
}

const stripped = ({ ipv6, ...network }: Network): Network => {
  const { pool: _pool, reservations: _reservations, exclude: _exclude, ...rest } = network;
  if (ipv6 === undefined) return rest;
  const { subnet, gateway } = ipv6;
  return { ...rest, ipv6: gateway === undefined ? { subnet } : { subnet, gateway } };
};

const leaseFields = ({ generation, grantedAt, expiresAt }: Lease): Attachment['lease'] =>
  expiresAt === undefined ? { generation, grantedAt } : { generation, grantedAt, expiresAt };
