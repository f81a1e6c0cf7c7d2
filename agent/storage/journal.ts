import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import {
  type Attachment,
  type AttachRequest,
  attachmentSchema,
  STATES as ATTACHMENT_STATES,
  attachRequestSchema,
  type Difference,
} from '#protocol/attachment.ts';
import type { DetachedReason } from '#protocol/events.ts';
import { parseRequest } from '#protocol/parse.ts';
import { type Network, parseNetwork } from '#protocol/network.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Log } from '../log.ts';
import { OrderedIds } from './ordered-ids.ts';
import { RecordLog } from './record-log.ts';
import type { StoredPosition } from '../attachments/request-log.ts';

const RECORD_VERSION = 1;

/**
 * All that this host knows of one attachment: the intent before the first side effect, the result after the last. The
 * record stays as long as anything of the attachment may be left: device, lease, or both.
 */
export interface AttachmentRecord {
  readonly id: string;
  /** `fenced`: another host or attachment has its lease, or the agent has `closed` it; its device is down. */
  readonly state: Attachment['state'];
  /** Why the agent has closed its device for good: the change that the device's holder made again and again. */
  readonly closed?: Difference;
  readonly networkType: Network['type'];
  readonly request: AttachRequest;
  /** Equal for requests with the same content (contract of `attach`). */
  readonly contentKey: string;
  /** The content key after the last update. */
  readonly updatedKey?: string;
  readonly createdAt: string;
  /** The boot (/proc/sys/kernel/random/boot_id) in which devices were made. */
  readonly bootId: string;
  /** The name that the host's end has, or is about to get; reserved from the intent on. */
  readonly deviceName: string;
  /** The lease's generation as soon as it is known. */
  readonly generation?: number;
  /** Device and inode of the network namespace that holds the workload's end. */
  readonly namespaceIdentity?: string;
  /** The network when the device was made or last changed, without its pool, reservations and exclusions. */
  readonly network?: Network;
  /** The revision of that network; unknown in records of an earlier release. */
  readonly revision?: number;
  /** What the network type found and has to put back (`CheckedAttach.before`). */
  readonly before?: Readonly<Record<string, unknown>>;
  readonly attachment?: Attachment;
  /**
   * The highest generation that the host had seen before it asked for a lease. A lease with this generation or a
   * lower one is an old lease of the id.
   */
  readonly seenGeneration?: number;
  /** The lease that the id had before (a VM's, from before a reboot), in an attach that failed. */
  readonly kept?: Lease;
  /** Why and for whom it is being detached; the `detached` event is made from this. */
  readonly detach?: DetachIntent;
}

/**
 * The `attached` event that is still to be stored. The answer does not wait for it; an agent that dies in between
 * leaves it to the next, as `announce` in the record's file.
 */
export interface Announcement {
  readonly requestId: string;
  readonly position?: StoredPosition;
  readonly durationMs: Readonly<Record<string, number>>;
  /** The request, if it is not the record's own but a later one that found the attachment there. */
  readonly repeat?: AttachRequest;
  readonly traceparent?: string;
  readonly tracestate?: string;
}

/** An announcement, and the attachment as it was when the announcement was made. */
export interface Untold {
  readonly announcement: Announcement;
  readonly attachment: Attachment;
}

export interface DetachIntent {
  readonly reason: Exclude<DetachedReason, 'absent' | 'reclaimed'>;
  readonly requestId: string;
  /** As the request named it. */
  readonly generation?: number;
  readonly position?: StoredPosition;
  readonly startedAt: string;
  readonly traceparent?: string;
  readonly tracestate?: string;
}

/**
 * The records of this host: a map in memory, and behind it one readable JSON file for each attachment, replaced by
 * rename, so that a reader and a crash see the old file or the new one. The folder is on tmpfs: no fsync.
 *
 * A reboot empties the runtime folder. So the record of a VM has a copy in a log in the state folder, from which the next
 * boot makes the VM's device again. The copy is written again when the next boot would need something else. If a power
 * cut or a full disk costs the copy, the lease is left, and waits for the next attach.
 */
export class Journal {
  readonly #folder: string;
  readonly #stateDir: string;
  readonly #copies: RecordLog;
  readonly #bootId: string;
  readonly #log: Log;
  readonly #records = new Map<string, AttachmentRecord>();
  readonly #ids = new OrderedIds();
  /** For each record that has a copy: the record as the copy has it. */
  readonly #copied = new Map<string, AttachmentRecord>();
  /** Announcements whose event is still to be stored, by id. */
  readonly #untold = new Map<string, Untold>();
  /** Ids by the name of the device. */
  readonly #deviceNames = new Map<string, string>();
  /** Ids by the workload's MAC, which is unique only within a network. */
  readonly #macs = new Map<string, readonly string[]>();
  /** The networks of records that are being loaded, by their text. */
  readonly #networks = new Map<string, Network>();
  #onChange: (id: string) => void = () => {};
  /** Ids of the VMs that were attached before the reboot, as `load` found them. */
  ofEarlierBoot: readonly string[] = [];

  constructor(options: { runtimeDir: string; stateDir: string; bootId: string; log: Log }) {
    this.#folder = join(options.runtimeDir, 'attachments');
    this.#stateDir = options.stateDir;
    this.#copies = openVmRecords(options.stateDir, options.log);
    this.#bootId = options.bootId;
    this.#log = options.log;
  }

  /**
   * Reads the folders. Files that are no records are set aside under `corrupt/`, records of a newer release under
   * `newer/`; both are reported. The release that can read the newer ones takes them back.
   */
  load(): void {
    for (const { record, announcement } of this.#readAll(this.#folder)) {
      this.#keep(record, announcement);
    }
    for (const { record, announcement } of this.#readCopies()) {
      this.#copied.set(record.id, record);
      if (this.#records.has(record.id)) continue;
      if (record.bootId === this.#bootId) this.#removeCopy(record.id);
      else this.put(record, announcement);
    }
    this.#networks.clear();
    for (const record of this.values()) this.#copy(record);
    this.ofEarlierBoot = this.values()
      .filter(({ state, request, bootId }) => {
        return state === 'attached' && request.kind === 'vm' && bootId !== this.#bootId;
      })
      .map(({ id }) => id);
  }

  get(id: string): AttachmentRecord | undefined {
    return this.#records.get(id);
  }

  /** `changed` is called after each change of a record; one listener. */
  onChange(changed: (id: string) => void): void {
    this.#onChange = changed;
  }

  values(): AttachmentRecord[] {
    return [...this.#records.values()];
  }

  /** The record with the next higher id, even if the record of `id` is gone; the first record if `id` is empty. */
  after(id = ''): AttachmentRecord | undefined {
    return this.#records.get(this.#ids.after(id) ?? '');
  }

  /** True when a record has or reserves this device name. */
  namesDevice(name: string): boolean {
    return this.#deviceNames.has(name);
  }

  /** The record that has or reserves this device name. */
  ofDevice(name: string): AttachmentRecord | undefined {
    return this.#records.get(this.#deviceNames.get(name) ?? '');
  }

  /** Records of workloads with this MAC. */
  ofMac(mac: string): AttachmentRecord[] {
    return (this.#macs.get(mac) ?? []).flatMap((id) => this.#records.get(id) ?? []);
  }

  /** The announcement of this attachment whose event is still to be stored. */
  untold(id: string): Untold | undefined {
    return this.#untold.get(id);
  }

  /** Ids of attachments with an announcement whose event is still to be stored. */
  untoldIds(): string[] {
    return [...this.#untold.keys()];
  }

  /**
   * Throws the error of the disk (ENOSPC), and then nothing has changed. An announcement stays with the record until
   * `noteTold`, through all later puts. Only the event log puts one (`EventLog.putAttached`).
   */
  put(record: AttachmentRecord, announcement = this.#untold.get(record.id)?.announcement): void {
    write(this.#folder, record, announcement);
    this.#keep(record, announcement);
    this.#copy(record, announcement);
    this.#onChange(record.id);
  }

  /** As `put`, but goes on if the disk refuses the record. If the agent dies then, the next one repeats the work. */
  putAnyway(record: AttachmentRecord): void {
    try {
      this.put(record);
    } catch (error) {
      this.#log.error({ id: record.id, error: String(error) }, 'record not written to disk');
      this.#keep(record, this.#untold.get(record.id)?.announcement);
      this.#onChange(record.id);
    }
  }

  /** The event of the record's announcement is stored. */
  noteTold(id: string): void {
    this.#untold.delete(id);
    const record = this.#records.get(id);
    if (record !== undefined) this.putAnyway(record);
  }

  /** Resolves when what the next boot needs survives a power failure; nothing can be put after that. */
  async close(): Promise<void> {
    await this.#copies.sync().catch(() => {});
    this.#copies.close();
  }

  remove(id: string): void {
    this.#removeCopy(id);
    rmSync(join(this.#folder, `${id}.json`), { force: true });
    this.#forget(id);
    this.#ids.delete(id);
    this.#untold.delete(id);
    this.#onChange(id);
  }

  #readAll(folder: string): Stored[] {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    takeBack(folder);
    const records: Stored[] = [];
    for (const name of readdirSync(folder)) {
      const path = join(folder, name);
      if (name.endsWith('.tmp')) {
        rmSync(path, { force: true });
      } else if (name.endsWith('.json')) {
        try {
          const stored = parseRecord(readFileSync(path, 'utf8'), this.#networks);
          const { id } = stored.record;
          if (`${id}.json` !== name) throw new Error(`is of attachment ${id}`);
          records.push(stored);
        } catch (error) {
          const aside = error instanceof OfNewerRelease ? 'newer' : 'corrupt';
          setAside(folder, name, aside);
          this.#log.error(
            { file: path, aside, error: String(error) },
            'record set aside: it cannot be read',
          );
        }
      }
    }
    return records;
  }

  /** A copy of a newer release stays in the log, for that release. */
  #readCopies(): Stored[] {
    const records = new Map<string, Stored>();
    for (const [id, text] of this.#copies.load()) {
      try {
        records.set(id, parseRecord(text, this.#networks));
      } catch (error) {
        this.#log.error(
          { id, error: String(error) },
          'copy of a record cannot be read: left alone',
        );
      }
    }
    for (const taken of this.#takeOverFiles()) records.set(taken.record.id, taken);
    return [...records.values()];
  }

  /** Copies that an earlier release has written, a file each. They are newer than the log: no agent since has run here. */
  #takeOverFiles(): Stored[] {
    const folder = join(this.#stateDir, 'attachments');
    if (!existsSync(folder)) return [];
    const taken = this.#readAll(folder);
    for (const { record, announcement } of taken) {
      this.#copies.put(record.id, textOf(record, announcement));
    }
    const end = (): void => {
      for (const { record } of taken) rmSync(join(folder, `${record.id}.json`), { force: true });
    };
    this.#copies.sync().then(end, (error: unknown) => {
      this.#log.error({ error: String(error) }, 'copies of records are not taken over yet');
    });
    return taken;
  }

  #keep(record: AttachmentRecord, announcement: Announcement | undefined): void {
    const { id, attachment } = record;
    this.#forget(id);
    this.#records.set(id, record);
    this.#ids.add(id);
    this.#deviceNames.set(record.deviceName, id);
    const isNew = announcement !== this.#untold.get(id)?.announcement;
    if (isNew && announcement !== undefined && attachment !== undefined) {
      this.#untold.set(id, { announcement, attachment });
    }
    const mac = attachment?.mac;
    if (mac !== undefined) this.#macs.set(mac, [...(this.#macs.get(mac) ?? []), id]);
  }

  #forget(id: string): void {
    const record = this.#records.get(id);
    // Interfaces in two namespaces may have one name.
    const { deviceName = '' } = record ?? {};
    if (this.#deviceNames.get(deviceName) === id) this.#deviceNames.delete(deviceName);
    this.#records.delete(id);
    const mac = record?.attachment?.mac ?? '';
    const others = (this.#macs.get(mac) ?? []).filter((other) => other !== id);
    if (others.length > 0) this.#macs.set(mac, others);
    else this.#macs.delete(mac);
  }

  /** Copies the record of a VM. An unfinished attach has nothing that the next boot could make again. */
  #copy(record: AttachmentRecord, announcement?: Announcement): void {
    if (record.request.kind !== 'vm' || record.state === 'attaching') return;
    const copied = this.#copied.get(record.id);
    if (copied === record) return;
    if (copied !== undefined && isSameForNextBoot(copied, record)) return;
    this.#copied.delete(record.id);
    try {
      this.#copies.put(record.id, textOf(record, announcement));
      this.#copied.set(record.id, record);
    } catch (error) {
      this.#log.error(
        { id: record.id, error: String(error) },
        'copy of a record not written: a reboot would lose the device of this VM',
      );
    }
  }

  #removeCopy(id: string): void {
    this.#copied.delete(id);
    this.#copies.remove(id);
  }
}

/** Whether records differ at most in the boot and in the index of the device. */
function isSameForNextBoot(one: AttachmentRecord, other: AttachmentRecord): boolean {
  const [lasts, also] = [one, other].map(({ bootId: _boot, ...record }) => {
    const { attachment } = record;
    if (!attachment?.device) return record;
    const { ifindex: _index, ...device } = attachment.device;
    return { ...record, attachment: { ...attachment, device } };
  });
  return isDeepStrictEqual(lasts, also);
}

/** Where the records of VMs are that outlive a reboot. */
export const vmRecordsIn = (stateDir: string): string => join(stateDir, 'vms');
export const openVmRecords = (stateDir: string, log: Log): RecordLog =>
  new RecordLog({ folder: vmRecordsIn(stateDir), log });

const textOf = (
  record: AttachmentRecord,
  announce: Announcement | undefined,
  indent?: number,
): string => JSON.stringify({ version: RECORD_VERSION, ...record, announce }, null, indent);

function write(folder: string, record: AttachmentRecord, announce: Announcement | undefined): void {
  const path = join(folder, `${record.id}.json`);
  const text = textOf(record, announce, 2);
  try {
    writeFileSync(`${path}.tmp`, `${text}\n`, { mode: 0o600 });
    renameSync(`${path}.tmp`, path);
  } catch (error) {
    rmSync(`${path}.tmp`, { force: true });
    throw error;
  }
}

function setAside(folder: string, name: string, aside: 'corrupt' | 'newer'): void {
  const place = join(folder, aside);
  mkdirSync(place, { recursive: true, mode: 0o700 });
  renameSync(join(folder, name), join(place, name));
}

/** Records that an older release has set aside, unless another record has taken their place. */
function takeBack(folder: string): void {
  const newer = join(folder, 'newer');
  if (!existsSync(newer)) return;
  for (const name of readdirSync(newer)) {
    if (!existsSync(join(folder, name))) renameSync(join(newer, name), join(folder, name));
  }
}

class OfNewerRelease extends Error {}

const STATES: ReadonlySet<unknown> = new Set(ATTACHMENT_STATES);

/** A record's file: the record, and its announcement where the event may not be stored yet. */
interface Stored {
  readonly record: AttachmentRecord;
  readonly announcement: Announcement | undefined;
}

function parseRecord(text: string, networks: Map<string, Network>): Stored {
  const record: unknown = JSON.parse(text);
  const version = versionOf(record);
  if (version > RECORD_VERSION) throw new OfNewerRelease(`is of version ${version}`);
  if (!isRecord(record)) throw new Error('is no record');
  const { version: _version, announce, ...fields } = record;
  const { network } = fields;
  const parsed = {
    ...fields,
    request: parseRequest(attachRequestSchema, record.request),
    ...(network !== undefined && { network: parsedNetwork(network, networks) }),
  };
  return { record: parsed, announcement: announce };
}

/** Thousands of records may be of one network, and share it. */
function parsedNetwork(network: Network, networks: Map<string, Network>): Network {
  const text = JSON.stringify(network);
  const known = networks.get(text) ?? parseNetwork(network);
  networks.set(text, known);
  return known;
}

function versionOf(value: unknown): number {
  const known = typeof value === 'object' && value !== null && 'version' in value;
  return known && typeof value.version === 'number' ? value.version : 0;
}

/** The fields that the agent relies on; the request in the record is parsed like any other. */
function isRecord(
  value: unknown,
): value is AttachmentRecord & { version: number; announce?: Announcement } {
  if (typeof value !== 'object' || value === null) return false;
  const field = (key: string): unknown => Object.getOwnPropertyDescriptor(value, key)?.value;
  const texts = ['id', 'networkType', 'contentKey', 'createdAt', 'bootId', 'deviceName'];
  return (
    field('version') === RECORD_VERSION &&
    STATES.has(field('state')) &&
    texts.every((key) => typeof field(key) === 'string') &&
    (field('state') !== 'attached' || attachmentSchema.safeParse(field('attachment')).success)
  );
}
