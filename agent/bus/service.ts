import { randomUUID } from 'node:crypto';
import type { z } from 'zod';
import {
  attachRequestSchema,
  checkRequestSchema,
  cordonRequestSchema,
  detachRequestSchema,
  getRequestSchema,
  listRequestSchema,
  networkDeleteRequestSchema,
  networkGetRequestSchema,
  networkListRequestSchema,
  networkPutRequestSchema,
  updateRequestSchema,
} from '#protocol/attachment.ts';
import { decode, encodeAnswer, EncodedAnswer, refuseLargeRequest } from '#protocol/envelope.ts';
import { VoltError } from '#protocol/errors.ts';
import {
  ledgerCheckRequestSchema,
  ledgerForgetRequestSchema,
  ledgerHostsRequestSchema,
  ledgerLeasesRequestSchema,
} from '#protocol/ledger.ts';
import { refuseUnserved } from '#protocol/guest-services.ts';
import { parseNetwork } from '#protocol/network.ts';
import { parseRequest } from '#protocol/parse.ts';
import {
  type HostOperation,
  type LedgerOperation,
  type NetworkOperation,
  subjects,
} from '#protocol/subjects.ts';
import type { Ledger, Self } from '#ipam-store/ledger.ts';
import { type Admission, isExpensive, type LaneName, type Move } from './admission.ts';
import { aboutOf } from './inbound.ts';
import { ledgerPage, refuseLargeAnswer, refuseLargeChange } from './answer-size.ts';
import type { Call } from '../attachments/attachments.ts';
import type { Cordon } from '../fleet/cordon.ts';
import type { BusAnswer, BusEndpoint, BusRequest } from './serving.ts';
import { errorAnswer } from './error-answer.ts';
import { loggedCause, toVoltError } from '../errors.ts';
import type { EventLog } from '../storage/events.ts';
import type { FleetCheck } from '../fleet/fleet-check.ts';
import type { FleetList } from '../fleet/fleet-list.ts';
import type { Queries } from '../attachments/queries.ts';
import type { Log } from '../log.ts';
import type { Requests } from '../attachments/requests.ts';
import type { Slices } from '../schedule/slices.ts';
import type { Standing } from '../fleet/standing.ts';
import { answers } from '../measure.ts';
import { type RequestTrace, noteIds, tracedRequest } from '../trace.ts';
import type { LedgerWatermark } from '../fleet/ledger-watermark.ts';

export interface ServiceOptions {
  readonly self: Self;
  readonly subjectPrefix: string;
  readonly admission: Admission;
  readonly slices: Slices;
  readonly requests: Requests;
  readonly queries: Queries;
  readonly cordon: Cordon;
  readonly fleetCheck: FleetCheck;
  readonly fleetList: FleetList;
  readonly ledger: Ledger;
  readonly watermark: LedgerWatermark;
  readonly events: EventLog;
  readonly standing: Standing;
  /** The most that an answer may have now. */
  readonly answerBytes: () => number;
  readonly stopping: () => boolean;
  readonly log: Log;
}

interface Operation<Name extends string> {
  /** Last token of the subject, and the name of the endpoint. */
  readonly name: Name;
  /** What it costs, as far as its name tells. */
  readonly lane: LaneName;
  readonly run: (payload: unknown, call: PricedCall) => Promise<object> | object;
}

interface PricedCall extends Call {
  /** For a request that turns out dearer than its name tells. */
  readonly move: Move;
}

/** The queue of what any one agent answers. */
const ANY_AGENT = 'agents';
/**
 * Answered also by a machine whose host id belongs to another one: the content of the ledger, and the end of a host
 * that is gone. With these an operator ends the conflict when no other agent is left.
 */
const OF_ANYBODY: ReadonlySet<string> = new Set([
  'network-get',
  'network-list',
  'ledger-leases',
  'ledger-hosts',
  'ledger-forget',
]);
const DEFAULT_TIMEOUT_MS = 10_000;
const MAX_TIMEOUT_MS = 120_000;
const OVERLOADS_TOLD_AFTER_MS = 1_000;

export interface Endpoints {
  /** Operations of this host. The local socket answers them, too. */
  readonly ofHost: readonly BusEndpoint[];
  /** What any one agent answers. */
  readonly ofFleet: readonly BusEndpoint[];
}

/** The table of all operations that this agent answers: bytes in, a checked request, its use case, bytes out. */
export function createEndpoints(options: ServiceOptions): Endpoints {
  const { subjectPrefix } = options;
  const { host } = options.self;
  const known = subjects(subjectPrefix);
  const gate = new Gate(options);
  const ofHost = hostOperations(options).map((one) => ({
    name: one.name,
    subject: known.host(host, one.name),
    queue: `host-${host}`,
    asHost: true,
    answer: (request: BusRequest) => gate.pass(one.name, request, { ...one, asHost: true }),
  }));
  const anyAgent = <Name extends string>(
    kind: string,
    one: Operation<Name>,
    subject: string,
  ): BusEndpoint => {
    const name = `${kind}-${one.name}`;
    const asHost = !OF_ANYBODY.has(name);
    const answer = (request: BusRequest): Promise<BusAnswer> =>
      gate.pass(`${kind}.${one.name}`, request, { ...one, asHost });
    return { name, subject, queue: ANY_AGENT, asHost, answer };
  };
  return {
    ofHost,
    ofFleet: [
      ...networkOperations(options).map((one) => anyAgent('network', one, known.network(one.name))),
      ...ledgerOperations(options).map((one) => anyAgent('ledger', one, known.ledger(one.name))),
    ],
  };
}

/** One operation: its schema parses the payload, so `run` sees a checked request or nothing. */
const operation = <Name extends string, Schema extends z.ZodType>(
  name: Name,
  lane: LaneName,
  schema: Schema,
  run: (request: z.infer<Schema>, call: PricedCall) => Promise<object> | object,
): Operation<Name> => ({
  name,
  lane,
  run: (payload, call) => run(parseRequest(schema, payload), call),
});

const hostOperations = ({
  requests,
  queries,
  cordon,
  fleetList,
}: ServiceOptions): Operation<HostOperation>[] => [
  operation('attach', 'change', attachRequestSchema, async (request, call) => {
    if (request.dryRun !== true) return requests.attach(request, call);
    await call.move('dry-run');
    return requests.dryRun(request, call);
  }),
  operation('detach', 'change', detachRequestSchema, (request, call) =>
    requests.detach(request, call),
  ),
  operation('update', 'change', updateRequestSchema, (request, call) =>
    requests.update(request, call),
  ),
  operation('get', 'read', getRequestSchema, ({ id }) => ({ attachment: queries.get(id) })),
  operation('list', 'list', listRequestSchema, async (request, { deadline, move }) => {
    if (request.allHosts !== true) return queries.list(request, deadline);
    // It may have to wait for the ledger; lists of this host must not wait for that.
    await move('leases');
    return fleetList.list(request, deadline);
  }),
  operation('check', 'checkOne', checkRequestSchema, async ({ id }, { deadline, move }) => {
    if (id !== undefined) return queries.check(id, deadline);
    await move('check');
    return queries.checkAll(deadline);
  }),
  operation('cordon', 'read', cordonRequestSchema, (request) => cordon.set(request)),
];

const networkOperations = ({
  ledger,
  slices,
  answerBytes,
  watermark,
  events,
  self,
}: ServiceOptions): Operation<NetworkOperation>[] => [
  operation(
    'put',
    'change',
    networkPutRequestSchema,
    async ({ revision, ...keys }, { trace, deadline }) => {
      const network = parseNetwork(keys);
      refuseUnserved(network);
      const answer = await ledger.putNetwork(network, revision, self, { deadline });
      watermark.noteNetwork(answer);
      events.add({
        type: 'network-changed',
        network: network.network,
        subject: network.network,
        operation: 'network.put',
        requestId: `${network.network}-${answer.revision}`,
        trace,
        body: { ...answer },
      });
      return answer;
    },
  ),
  operation('get', 'read', networkGetRequestSchema, async ({ network }, { deadline }) => {
    const found = await ledger.getNetwork(network, { deadline });
    if (found === null) throw new VoltError('UNKNOWN_NETWORK', `there is no network ${network}`);
    return found;
  }),
  operation('list', 'networks', networkListRequestSchema, ({ cursor, limit: most }) =>
    ledgerPage({ limit: most, bytes: answerBytes(), slices }, async (limit) => {
      const answer = await ledger.listNetworks({ cursor, limit });
      return { answer, elements: answer.networks.length };
    }),
  ),
  operation(
    'delete',
    'change',
    networkDeleteRequestSchema,
    async ({ network }, { trace, deadline }) => {
      const answer = await ledger.deleteNetwork(network, self, { deadline });
      if (!answer.deleted) return answer;
      events.add({
        type: 'network-changed',
        network,
        subject: network,
        operation: 'network.delete',
        requestId: randomUUID(),
        trace,
        body: { network, deleted: true },
      });
      return answer;
    },
  ),
];

const ledgerOperations = ({
  ledger,
  slices,
  answerBytes,
  fleetCheck,
  events,
}: ServiceOptions): Operation<LedgerOperation>[] => [
  operation('leases', 'leases', ledgerLeasesRequestSchema, ({ state, limit: most, ...request }) =>
    ledgerPage({ limit: most, bytes: answerBytes(), slices }, async (limit) => {
      const { leases, cursor } = await ledger.listLeases({ ...request, limit });
      const answer = {
        leases: leases
          .filter((lease) => state === undefined || lease.state === state)
          .map(({ bootId: _bootId, ...lease }) => lease),
        ...(cursor !== undefined && { cursor }),
      };
      return { answer, elements: leases.length };
    }),
  ),
  operation('hosts', 'hosts', ledgerHostsRequestSchema, ({ cursor, limit: most }) =>
    ledgerPage({ limit: most, bytes: answerBytes(), slices }, async (limit) => {
      const answer = await ledger.listHosts({ cursor, limit });
      return { answer, elements: answer.hosts.length };
    }),
  ),
  operation('forget', 'change', ledgerForgetRequestSchema, async ({ host }, { trace }) => {
    const { forgotten, released } = await ledger.forgetHost(host);
    if (forgotten) {
      events.add({
        type: 'host-down',
        network: '-',
        subject: host,
        operation: 'ledger.forget',
        requestId: randomUUID(),
        trace,
        body: { host, reason: 'forgotten', released },
      });
    }
    return { host, forgotten, released };
  }),
  operation('check', 'fleetCheck', ledgerCheckRequestSchema, (request, { deadline }) =>
    fleetCheck.check(request, deadline),
  ),
];

/** The way of every request: limits, decoding, trace, and an answer whatever happens. */
class Gate {
  readonly #options: ServiceOptions;
  /** How many requests of each operation were refused since the last log line. */
  readonly #overloads = new Map<string, number>();
  #telling: NodeJS.Timeout | undefined;

  constructor(options: ServiceOptions) {
    this.#options = options;
  }

  async pass(
    name: string,
    { caller, payload, ...request }: BusRequest,
    { lane, run, asHost }: Operation<string> & Pick<BusEndpoint, 'asHost'>,
  ): Promise<BusAnswer> {
    const started = performance.now();
    const { log, self, admission, slices, standing, answerBytes } = this.#options;
    const trace: RequestTrace = {
      name,
      role: 'server',
      attributes: { 'volt.host': self.host, 'messaging.destination.name': request.subject },
      ...request.headers.trace,
    };
    const timeoutMs = Math.min(request.headers.timeoutMs ?? DEFAULT_TIMEOUT_MS, MAX_TIMEOUT_MS);
    const deadline = started + timeoutMs;
    try {
      this.#refuseWhenStopping();
      if (request.headers.flaw !== undefined) throw request.headers.flaw;
      // What is to wait is to be small.
      refuseLargeRequest(payload);
      if (lane === 'change') refuseLargeChange(payload, answerBytes());
      const about = lane === 'change' && asHost ? () => aboutOf(name, payload) : undefined;
      const who = { caller, deadline, ...(about && { about }) };
      const answered = await admission.passIn(lane, who, (move) =>
        tracedRequest(trace, async () => {
          // The request was on its way, or has waited, when the ledger knew another machine as the host.
          if (asHost) standing.check();
          const body = decode(payload);
          noteIds(trace, body);
          const answer = await run(body, { trace, deadline, move });
          const encoded = await encodedIn(answer, isExpensive(lane) ? slices : undefined);
          refuseLargeAnswer(name, encoded, { limit: answerBytes(), done: lane === 'change' });
          return encoded;
        }),
      );
      const ms = performance.now() - started;
      log.debug({ operation: name, ms }, 'answered');
      answers.note({ operation: name, code: 'OK', ms });
      return { payload: answered };
    } catch (cause) {
      const error = toVoltError(cause);
      const { code, message } = error;
      answers.note({ operation: name, code, ms: performance.now() - started });
      if (code === 'OVERLOADED') this.#noteOverload(name);
      else {
        const level = code === 'INTERNAL' ? 'error' : 'info';
        log[level]({ operation: name, code, message, cause: loggedCause(error) }, 'refused');
      }
      return errorAnswer(error, answerBytes());
    }
  }

  /** While very many are refused, a line for each would be the next flood. */
  #noteOverload(name: string): void {
    this.#overloads.set(name, (this.#overloads.get(name) ?? 0) + 1);
    if (this.#telling !== undefined) return;
    this.#telling = setTimeout(() => {
      const refused = Object.fromEntries(this.#overloads);
      this.#options.log.warn({ refused }, 'OVERLOADED: requests were refused');
      this.#overloads.clear();
      this.#telling = undefined;
    }, OVERLOADS_TOLD_AFTER_MS).unref();
  }

  #refuseWhenStopping(): void {
    if (this.#options.stopping()) throw new VoltError('SHUTTING_DOWN', 'the agent is stopping');
  }
}

async function encodedIn(answer: object, slices: Slices | undefined): Promise<Uint8Array> {
  if (answer instanceof EncodedAnswer) return answer.bytes;
  return slices === undefined ? encodeAnswer(answer) : slices.once(() => encodeAnswer(answer));
}
