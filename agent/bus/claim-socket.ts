import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { decodeAnswer } from '#protocol/envelope.ts';
import { toErrorBody, VoltError } from '#protocol/errors.ts';
import type { LocalAnswers } from '#protocol/local-socket.ts';
import type { Descriptor } from '#native/descriptor.ts';
import type { PeerCredentials } from '#native/peer.ts';
import type { listenSeqpacket, SeqpacketServer } from '#native/seqpacket.ts';
import type { SeqpacketConnection } from '#native/seqpacket-connection.ts';
import { MAX_PACKET_BYTES } from '#native/packet.ts';
import type { BusEndpoint } from './bus.ts';
import { toVoltError } from '../errors.ts';
import type { Journal } from '../storage/journal.ts';
import {
  type Claim,
  encodedBody,
  headersIn,
  jsonOf,
  parsePacket,
  type Request,
  wrong,
} from './local-packet.ts';
import type { Log } from '../log.ts';
import type { NetworkTypes } from '../host/networks/network-type.ts';
import type { Slices } from '../schedule/slices.ts';

export const SOCKET_NAME = 'agent.sock';

export interface ClaimSocketOptions {
  readonly host: string;
  readonly runtimeDir: string;
  readonly journal: Journal;
  readonly networkTypes: NetworkTypes;
  /** What `{"op":"health"}` answers. */
  readonly health: () => LocalAnswers['health'];
  /** What `{"op":"settle"}` does and answers. */
  readonly settle: () => Promise<LocalAnswers['settle']>;
  /** What `{"op":"clean"}` does and answers. */
  readonly clean: () => LocalAnswers['clean'];
  /** Another VMM has the device of this attachment from now on. */
  readonly onClaim: (id: string) => void;
  /** What `{"op":"request"}` asks for, by name. */
  readonly endpoints: readonly BusEndpoint[];
  readonly slices: Slices;
  readonly listen: typeof listenSeqpacket;
  readonly log: Log;
}

interface Answer extends Disposable {
  readonly body: Readonly<Record<string, unknown>>;
  readonly descriptors: readonly Descriptor[];
}

const ROOT = 0;
const PRIVILEGED_GROUP = 'volt';
/** Answers that wait for their readers: above this no further request is taken. */
const MOST_UNSENT_BYTES = 8 * 1024 * 1024;
/** How long a reader may take for an answer. */
const SEND_TIMEOUT_MS = 10_000;

/**
 * The local socket: one packet of JSON in, an answer out. `claim` hands the descriptors of a TAP to the process that
 * runs the VM. `health` says how the agent is. For root alone, `request` does the same as a request on the bus, also
 * while the bus is away, `settle` decides that this machine is the host, and `clean` takes networks off it that nobody needs. Anybody may connect; what he may do
 * depends on his credentials, as the kernel reports them.
 */
export class ClaimSocket {
  readonly #options: ClaimSocketOptions;
  #server: SeqpacketServer | undefined;
  #unsentBytes = 0;

  constructor(options: ClaimSocketOptions) {
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
    connection.onPacket((bytes) => this.#take(bytes, connection));
  }

  #take(bytes: Uint8Array, connection: SeqpacketConnection): Promise<void> | void {
    const { peer } = connection;
    try {
      const packet = parsePacket(bytes);
      switch (packet.op) {
        case 'request':
          return this.#request(packet, connection);
        case 'settle':
          return this.#settle(peer).then((settled) => this.#send(connection, settled));
        case 'clean':
          return this.#send(connection, this.#clean(peer));
        case 'health':
          return this.#send(connection, answer(this.#options.health()));
        case 'claim':
          return this.#send(connection, this.#claim(packet, peer));
      }
    } catch (error) {
      return this.#send(connection, refusal(error));
    }
  }

  #send(connection: SeqpacketConnection, given: Answer): void {
    using answer = given;
    const payload = Buffer.from(JSON.stringify(answer.body));
    const fds = answer.descriptors.map(({ fd }) => fd);
    try {
      connection.send(payload, fds);
    } catch (error) {
      // The descriptors are closed here, and the caller may ask again.
      this.#giveUp(connection, error);
    }
  }

  /** The peer went away, or does not read. */
  #giveUp(connection: SeqpacketConnection, error: unknown): void {
    this.#options.log.debug(
      { error: String(error) },
      'local socket: the caller did not take its answer',
    );
    connection.close();
  }

  async #request(packet: Request, connection: SeqpacketConnection): Promise<void> {
    const body = await this.#answerTo(packet, connection.peer).catch((error: unknown) =>
      toErrorBody(toVoltError(error)),
    );
    const bytes = jsonOf(body);
    this.#unsentBytes += bytes.length;
    try {
      await connection.sendAll(bytes, { timeoutMs: SEND_TIMEOUT_MS });
    } catch (error) {
      this.#giveUp(connection, error);
    } finally {
      this.#unsentBytes -= bytes.length;
    }
  }

  /** Handled like a request from the bus: the same limits, checks and answers. */
  async #answerTo(packet: Request, { uid, pid }: PeerCredentials) {
    const { operation, host, body = {} } = packet;
    const { endpoints, slices, log, host: own } = this.#options;
    if (uid !== ROOT) {
      throw new VoltError('UNAUTHORIZED', `uid ${uid} may not ask for ${operation} here`);
    }
    const endpoint = endpoints.find(({ name }) => name === operation);
    if (endpoint === undefined) {
      const names = endpoints.map(({ name }) => name).join(', ');
      throw wrong('operation', `must be one of ${names}`);
    }
    if (host !== undefined && host !== own) {
      throw new VoltError('WRONG_HOST', `this is the agent of host ${own}, not of ${host}`);
    }
    if (this.#unsentBytes > MOST_UNSENT_BYTES) {
      throw new VoltError('OVERLOADED', 'too many answers wait for their readers');
    }
    log.info({ operation, pid, uid }, 'asked over the local socket');
    const { subject } = endpoint;
    const caller = `uid ${uid}`;
    const headers = headersIn(packet);
    const asked = { subject, caller, payload: encodedBody(body), headers };
    const { payload } = await endpoint.answer(asked);
    if (payload.length < MAX_PACKET_BYTES) return decodeAnswer(payload);
    return slices.once(() => decodeAnswer(payload));
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

  #clean({ uid, pid }: PeerCredentials): Answer {
    const { clean, log } = this.#options;
    if (uid !== ROOT) throw new VoltError('UNAUTHORIZED', `uid ${uid} may not clean this host`);
    const cleaned = clean();
    log.info({ ...cleaned, pid }, 'networks without workloads were taken off this host');
    return answer(cleaned);
  }

  #claim({ id, generation }: Claim, peer: PeerCredentials): Answer {
    const { journal, networkTypes, onClaim, log } = this.#options;
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
    if ((generation ?? attachment.generation) !== attachment.generation) {
      throw new VoltError('STALE_GENERATION', `${id} has generation ${attachment.generation}`, {
        details: { generation: attachment.generation },
      });
    }
    const type = networkTypes[record.networkType];
    if (type === undefined) throw new VoltError('UNSUPPORTED', `${id}: its type is not supported`);
    const descriptors = type.claim(attachment);
    onClaim(id);
    log.info({ id, pid: peer.pid, uid: peer.uid, queues: descriptors.length }, 'device claimed');
    const claimed: LocalAnswers['claim'] = { attachment };
    return answer(claimed, descriptors);
  }
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

/** Read at each claim, so that a group counts that was made after the agent started. */
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
