import { randomUUID } from 'node:crypto';
import type { z } from 'zod';
import {
  attachRequestSchema,
  checkRequestSchema,
  detachRequestSchema,
  getRequestSchema,
  listRequestSchema,
  networkDeleteRequestSchema,
  networkGetRequestSchema,
  networkListRequestSchema,
  networkPutRequestSchema,
  updateRequestSchema,
} from '#protocol/attachment.ts';
import { decode, encodeAnswer } from '#protocol/envelope.ts';
import { VoltError } from '#protocol/errors.ts';
import {
  ledgerCheckRequestSchema,
  ledgerForgetRequestSchema,
  ledgerHostsRequestSchema,
  ledgerLeasesRequestSchema,
} from '#protocol/ledger.ts';
import { parseNetwork } from '#protocol/network.ts';
import { parseRequest } from '#protocol/parse.ts';
import {
  type HostOperation,
  type LedgerOperation,
  type NetworkOperation,
  subjects,
} from '#protocol/subjects.ts';
import type { Ledger } from '#ipam-store/ledger.ts';
import type { Admission } from './admission.ts';
import type { Call } from './attachments.ts';
import type { BusAnswer, BusEndpoint, BusRequest } from './bus.ts';
import { errorAnswer, toVoltError } from './errors.ts';
import type { EventLog } from './events.ts';
import type { FleetCheck } from './fleet-check.ts';
import type { Inspection } from './inspection.ts';
import type { Log } from './log.ts';
import type { Requests } from './requests.ts';
import type { Session } from './session.ts';
import { type RequestTrace, tracedRequest } from './trace.ts';
import type { Witness } from './witness.ts';

export interface ServiceOptions {
  readonly host: string;
  readonly subjectPrefix: string;
  readonly admission: Admission;
  readonly requests: Requests;
  readonly inspection: Inspection;
  readonly fleetCheck: FleetCheck;
  readonly ledger: Ledger;
  readonly witness: Witness;
  /** Tries again for a while what the ledger refuses as RECOVERING. */
  readonly whileRecovering: Session['whileRecovering'];
  readonly events: EventLog;
  readonly stopping: () => boolean;
  readonly log: Log;
}

interface Operation<Name extends string> {
  /** Last token of the subject, and the name of the endpoint. */
  readonly name: Name;
  readonly run: (payload: unknown, call: Call) => Promise<object> | object;
}

/** The queue of what any one agent answers. */
const ANY_AGENT = 'agents';
const DEFAULT_TIMEOUT_MS = 10_000;
const MAX_TIMEOUT_MS = 120_000;

/** The table of what this agent answers: bytes in, a checked request, its use case, bytes out. */
export function createEndpoints(options: ServiceOptions): BusEndpoint[] {
  const { host, subjectPrefix } = options;
  const known = subjects(subjectPrefix);
  const gate = new Gate(options);
  const onHost = hostOperations(options).map(({ name, run }) => ({
    name,
    subject: known.host(host, name),
    queue: `host-${host}`,
    answer: (request: BusRequest) => gate.pass(name, request, run),
  }));
  const network = networkOperations(options).map(({ name, run }) => ({
    name: `network-${name}`,
    subject: known.network(name),
    queue: ANY_AGENT,
    answer: (request: BusRequest) => gate.pass(`network.${name}`, request, run),
  }));
  const ledger = ledgerOperations(options).map(({ name, run }) => ({
    name: `ledger-${name}`,
    subject: known.ledger(name),
    queue: ANY_AGENT,
    answer: (request: BusRequest) => gate.pass(`ledger.${name}`, request, run),
  }));
  return [...onHost, ...network, ...ledger];
}

/** One operation: its schema parses the payload, so `run` sees a checked request or nothing. */
const operation = <Name extends string, Schema extends z.ZodType>(
  name: Name,
  schema: Schema,
  run: (request: z.infer<Schema>, call: Call) => Promise<object> | object,
): Operation<Name> => ({ name, run: (payload, call) => run(parseRequest(schema, payload), call) });

const hostOperations = ({ requests, inspection }: ServiceOptions): Operation<HostOperation>[] => [
  operation('attach', attachRequestSchema, (request, call) =>
    request.dryRun === true ? requests.rehearse(request, call) : requests.attach(request, call),
  ),
  operation('detach', detachRequestSchema, (request, call) => requests.detach(request, call)),
  operation('update', updateRequestSchema, (request, call) => requests.update(request, call)),
  operation('get', getRequestSchema, ({ id }) => ({ attachment: inspection.get(id) })),
  operation('list', listRequestSchema, (request) => inspection.list(request)),
  operation('check', checkRequestSchema, (request) => inspection.check(request)),
];

const networkOperations = ({
  ledger,
  witness,
  whileRecovering,
  events,
}: ServiceOptions): Operation<NetworkOperation>[] => [
  operation('put', networkPutRequestSchema, async ({ revision, ...keys }, { trace, deadline }) => {
    const network = parseNetwork(keys);
    const answer = await whileRecovering(deadline, () => ledger.putNetwork(network, revision));
    witness.noteNetwork(answer);
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
  }),
  operation('get', networkGetRequestSchema, async ({ network }, { deadline }) => {
    const found = await whileRecovering(deadline, () => ledger.getNetwork(network));
    if (found === null) throw new VoltError('UNKNOWN_NETWORK', `there is no network ${network}`);
    return found;
  }),
  operation('list', networkListRequestSchema, (request) => ledger.listNetworks(request)),
  operation('delete', networkDeleteRequestSchema, async ({ network }, { trace, deadline }) => {
    const answer = await whileRecovering(deadline, () => ledger.deleteNetwork(network));
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
  }),
];

const ledgerOperations = ({
  ledger,
  fleetCheck,
  events,
}: ServiceOptions): Operation<LedgerOperation>[] => [
  operation('leases', ledgerLeasesRequestSchema, async ({ state, ...request }) => {
    const { leases, cursor } = await ledger.listLeases(request);
    return {
      leases: leases
        .filter((lease) => state === undefined || lease.state === state)
        .map(({ bootId: _bootId, ...lease }) => lease),
      ...(cursor !== undefined && { cursor }),
    };
  }),
  operation('hosts', ledgerHostsRequestSchema, (request) => ledger.listHosts(request)),
  operation('forget', ledgerForgetRequestSchema, async ({ host }, { trace }) => {
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
  operation('check', ledgerCheckRequestSchema, ({ repair = false }) =>
    fleetCheck.check({ repair }),
  ),
];

/** What every request goes through: bounds, decoding, trace, and an answer whatever happens. */
class Gate {
  readonly #options: ServiceOptions;

  constructor(options: ServiceOptions) {
    this.#options = options;
  }

  async pass(name: string, request: BusRequest, run: Operation<string>['run']): Promise<BusAnswer> {
    const started = performance.now();
    const { log, host, admission } = this.#options;
    const trace: RequestTrace = {
      name,
      role: 'server',
      attributes: { 'volt.host': host, 'messaging.destination.name': request.subject },
      ...request.headers.trace,
    };
    const timeoutMs = Math.min(request.headers.timeoutMs ?? DEFAULT_TIMEOUT_MS, MAX_TIMEOUT_MS);
    const deadline = started + timeoutMs;
    try {
      this.#refuseWhenStopping();
      if (request.headers.flaw !== undefined) throw request.headers.flaw;
      const answer = await admission.pass(request.caller, deadline, () =>
        tracedRequest(trace, async () => run(decode(request.payload), { trace, deadline })),
      );
      log.debug({ operation: name, ms: performance.now() - started }, 'answered');
      return { payload: encodeAnswer(answer) };
    } catch (cause) {
      const error = toVoltError(cause);
      const { code, message } = error;
      const level = code === 'INTERNAL' ? 'error' : 'info';
      log[level]({ operation: name, code, message, cause: error.cause }, 'refused');
      return errorAnswer(error);
    }
  }

  #refuseWhenStopping(): void {
    if (this.#options.stopping()) throw new VoltError('SHUTTING_DOWN', 'the agent is stopping');
  }
}
