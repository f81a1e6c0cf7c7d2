import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { toErrorBody, VoltError } from '#protocol/errors.ts';
import type { Descriptor } from '#native/descriptor.ts';
import type {
  listenSeqpacket,
  PeerCredentials,
  SeqpacketConnection,
  SeqpacketServer,
} from '#native/seqpacket.ts';
import { toVoltError } from './errors.ts';
import type { Journal } from './journal.ts';
import type { Log } from './log.ts';
import type { NetworkTypes } from './networks/network.ts';

export const SOCKET_NAME = 'agent.sock';

export interface HandoffOptions {
  readonly runtimeDir: string;
  readonly journal: Journal;
  readonly networkTypes: NetworkTypes;
  /** What `{"op":"health"}` answers. */
  readonly health: () => Readonly<Record<string, unknown>>;
  /** What `{"op":"settle"}` does and answers. */
  readonly settle: () => Promise<Readonly<Record<string, unknown>>>;
  readonly listen: typeof listenSeqpacket;
  readonly log: Log;
}

interface Answer extends Disposable {
  readonly body: Readonly<Record<string, unknown>>;
  readonly descriptors: readonly Descriptor[];
}

const ROOT = 0;
const PRIVILEGED_GROUP = 'volt';

/**
 * The local socket: one packet of JSON in, one out. `claim` hands over the descriptors of a TAP to the
 * process that is to run the VM; `health` says how the agent stands; `settle`, for root alone, decides that this machine
 * is the host. Whoever may connect (anybody) is judged by its credentials as the kernel reports them.
 */
export class Handoff {
  readonly #options: HandoffOptions;
  #server: SeqpacketServer | undefined;

  constructor(options: HandoffOptions) {
    this.#options = options;
  }

  start(): void {
    this.#server = this.#options.listen({
      path: join(this.#options.runtimeDir, SOCKET_NAME),
      mode: 0o666,
      onConnection: (connection) => this.#accept(connection),
    });
  }

  close(): void {
    this.#server?.close();
  }

  #accept(connection: SeqpacketConnection): void {
    connection.onPacket((bytes) => {
      const answered = this.#answer(bytes, connection.peer);
      if (answered instanceof Promise) {
        void answered.then((later) => this.#send(connection, later));
      } else {
        this.#send(connection, answered);
      }
    });
  }

  #send(connection: SeqpacketConnection, given: Answer): void {
    using answer = given;
    const payload = Buffer.from(JSON.stringify(answer.body));
    const fds = answer.descriptors.map(({ fd }) => fd);
    try {
      connection.send(payload, fds);
    } catch (error) {
      // The peer went away, or does not read: its descriptors are closed here and it may ask again.
      this.#options.log.debug({ error: String(error) }, 'local socket: answer not taken');
      connection.close();
    }
  }

  #answer(bytes: Uint8Array, peer: PeerCredentials): Answer | Promise<Answer> {
    try {
      const request = parsePacket(bytes);
      if (request.op === 'health') return answer(this.#options.health());
      if (request.op === 'settle') return this.#settle(peer);
      return this.#claim(request, peer);
    } catch (error) {
      return refusal(error);
    }
  }

  async #settle({ uid, pid }: PeerCredentials): Promise<Answer> {
    const { settle, log } = this.#options;
    try {
      if (uid !== ROOT)
        throw new VoltError('UNAUTHORIZED', `uid ${uid} may not settle whose a host is`);
      const settled = await settle();
      log.warn({ ...settled, pid }, 'an operator has decided that this machine is the host');
      return answer(settled);
    } catch (error) {
      return refusal(error);
    }
  }

  #claim({ id, generation }: Claim, peer: PeerCredentials): Answer {
    const { journal, networkTypes, log } = this.#options;
    const record = journal.get(id);
    const attachment = record?.state === 'attached' ? record.attachment : undefined;
    if (record === undefined || attachment === undefined) {
      throw new VoltError('NOT_FOUND', `${id} is not attached on this host`);
    }
    if (!mayClaim(peer, record.request.tap)) {
      throw new VoltError('UNAUTHORIZED', `uid ${peer.uid} may not claim ${id}`, {
        details: { uid: peer.uid, gid: peer.gid },
      });
    }
    if (generation !== undefined && generation !== attachment.generation) {
      throw new VoltError('STALE_GENERATION', `${id} has generation ${attachment.generation}`, {
        details: { generation: attachment.generation },
      });
    }
    const type = networkTypes[record.networkType];
    if (type === undefined) throw new VoltError('UNSUPPORTED', `${id}: its type is not supported`);
    const descriptors = type.claim(attachment);
    log.info({ id, pid: peer.pid, uid: peer.uid, queues: descriptors.length }, 'device claimed');
    return answer({ attachment }, descriptors);
  }
}

/** `health`, `settle`, or a `claim` of these. */
interface Claim {
  readonly op: 'claim' | 'health' | 'settle';
  readonly id: string;
  readonly generation?: number;
}

function parsePacket(bytes: Uint8Array): Claim {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(bytes).toString('utf8'));
  } catch (cause) {
    throw new VoltError('INVALID_REQUEST', 'the packet is not JSON', { cause });
  }
  if (typeof value !== 'object' || value === null || !('op' in value)) {
    throw new VoltError(
      'INVALID_REQUEST',
      'the packet must be {"op": "claim" | "health" | "settle", …}',
    );
  }
  if (value.op === 'health' || value.op === 'settle') return { op: value.op, id: '' };
  if (value.op !== 'claim') {
    throw new VoltError('INVALID_REQUEST', 'op: must be "claim", "health" or "settle"', {
      details: { path: 'op' },
    });
  }
  const id = 'id' in value ? value.id : undefined;
  if (typeof id !== 'string') {
    throw new VoltError('INVALID_REQUEST', 'id: must be a string', { details: { path: 'id' } });
  }
  const generation = 'generation' in value ? value.generation : undefined;
  if (generation === undefined || generation === null) return { op: 'claim', id };
  if (!Number.isSafeInteger(generation) || typeof generation !== 'number') {
    throw new VoltError('INVALID_REQUEST', 'generation: must be an integer', {
      details: { path: 'generation' },
    });
  }
  return { op: 'claim', id, generation };
}

function mayClaim(
  peer: PeerCredentials,
  owner: { ownerUid?: number | undefined; ownerGid?: number | undefined } | undefined,
): boolean {
  if (peer.uid === ROOT || (owner?.ownerUid !== undefined && peer.uid === owner.ownerUid)) {
    return true;
  }
  const groups = new Set([peer.gid, ...peer.groups]);
  if (owner?.ownerGid !== undefined && groups.has(owner.ownerGid)) return true;
  const privileged = privilegedGid();
  return privileged !== undefined && groups.has(privileged);
}

/** Read at each claim, so that a group made after the agent started counts. */
function privilegedGid(): number | undefined {
  const entry = readFileSync('/etc/group', 'utf8')
    .split('\n')
    .find((line) => line.startsWith(`${PRIVILEGED_GROUP}:`));
  const gid = Number(entry?.split(':')[2]);
  return entry === undefined || Number.isNaN(gid) ? undefined : gid;
}

const answer = (
  body: Readonly<Record<string, unknown>>,
  descriptors: readonly Descriptor[] = [],
): Answer => ({
  body,
  descriptors,
  [Symbol.dispose]: () => {
    for (const descriptor of descriptors) descriptor.close();
  },
});

const refusal = (error: unknown): Answer => answer({ ...toErrorBody(toVoltError(error)) });
