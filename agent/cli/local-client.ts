import type { VoltNetworkClient } from '#protocol/client.ts';
import { VoltError } from '#protocol/errors.ts';
import { IS_ANSWER, type IsAnswer } from '#protocol/outlines.ts';
import type { HostOperation } from '#protocol/subjects.ts';
import { sendToAgent } from './local-socket.ts';
import type { Settings } from './settings.ts';

/** Requests to one host, over NATS or over its agent's socket. */
export type HostClient = Pick<
  VoltNetworkClient,
  | 'attach'
  | 'dryRun'
  | 'detach'
  | 'update'
  | 'get'
  | 'check'
  | 'cordon'
  | 'list'
  | 'listAll'
  | 'listFleet'
>;

type Method<Name extends keyof HostClient> = HostClient[Name];

/** Asks the agent of this host over its socket, as root. Answers and errors are the same as on the bus. */
export class LocalClient implements HostClient {
  readonly #settings: Settings;

  constructor(settings: Settings) {
    this.#settings = settings;
  }

  readonly attach: Method<'attach'> = (host, request) =>
    this.#ask(host, 'attach', request, IS_ANSWER.attach);

  readonly dryRun: Method<'dryRun'> = (host, request) =>
    this.#ask(host, 'attach', { ...request, dryRun: true }, IS_ANSWER.dryRun);

  readonly detach: Method<'detach'> = (host, request) =>
    this.#ask(host, 'detach', request, IS_ANSWER.detach);

  readonly update: Method<'update'> = (host, request) =>
    this.#ask(host, 'update', request, IS_ANSWER.update);

  readonly get: Method<'get'> = (host, request) => this.#ask(host, 'get', request, IS_ANSWER.get);

  readonly check: Method<'check'> = (host, request) =>
    this.#ask(host, 'check', request ?? {}, IS_ANSWER.check);

  readonly cordon: Method<'cordon'> = (host, request) =>
    this.#ask(host, 'cordon', request, IS_ANSWER.cordon);

  readonly list: Method<'list'> = (host, request) =>
    this.#ask(host, 'list', request ?? {}, IS_ANSWER.list);

  readonly listFleet: Method<'listFleet'> = (host, request) =>
    this.#ask(host, 'list', { ...request, allHosts: true }, IS_ANSWER.fleetList);

  async *listAll(...[host, request]: Parameters<Method<'listAll'>>): ReturnType<Method<'listAll'>> {
    let cursor: string | undefined;
    do {
      const page = await this.list(host, { ...request, cursor });
      yield* page.attachments;
      ({ cursor } = page);
    } while (cursor !== undefined);
  }

  async #ask<Answer>(
    host: string,
    operation: HostOperation,
    body: object,
    isAnswer: IsAnswer<Answer>,
  ): Promise<Answer> {
    const { runtimeDir, timeoutMs, traceContext } = this.#settings;
    const request = { op: 'request', operation, host, body, timeoutMs, ...traceContext } as const;
    const patienceMs = timeoutMs + ANSWER_GRACE_MS;
    using reply = await sendToAgent({ runtimeDir, timeoutMs: patienceMs, request });
    const answer: unknown = reply.body;
    if (isAnswer(answer)) return answer;
    throw new VoltError('INTERNAL', `the answer to ${operation} lacks what the protocol promises`);
  }
}

// The agent gives up at the caller's deadline; its answer still has to travel.
const ANSWER_GRACE_MS = 500;
