import { SERVICE_NAME, subjects } from '#protocol/subjects.ts';
import type { BusProblem } from './bus-problems.ts';
import type { Log } from '../log.ts';
import type { Refused } from './nats-connection.ts';

/** A refusal that is not repeated for so long is over: whatever is refused is tried again sooner. */
const REFUSAL_MS = 10_000;
/** The key of doorbells: one that is refused is as good as all. */
const MUTED = 'doorbells';
/** The key of answers: each goes to a subject of its own, which its caller has chosen. */
const ANSWERS = 'answers';

/** What the server has lately refused beside the subscriptions that stay: publications, and inboxes. */
export class Refusals {
  readonly #prefix: string;
  readonly #log: Log;
  readonly #refused = new Map<string, Refused & { readonly untilMs: number }>();

  constructor(prefix: string, log: Log) {
    this.#prefix = prefix;
    this.#log = log;
  }

  note({ operation, subject: exact }: Refused): void {
    const isPublication = operation === 'publish';
    if (isPublication && isQuestion(exact)) {
      this.#log.debug({ subject: exact }, 'NATS refuses a question, which is done without');
      return;
    }
    const kind = subjects(this.#prefix).match(exact)?.kind;
    const isAnswer = isPublication && kind === undefined && !exact.startsWith('$');
    const isRing = isPublication && kind === 'changed';
    const subject = isPublication && !isAnswer ? exact : inboxesOf(exact);
    const key = isRing ? MUTED : isAnswer ? ANSWERS : `${operation} ${subject}`;
    const known = this.#refused.get(key);
    if (known === undefined) {
      this.#log.warn({ operation, subject }, 'NATS refuses a subject to this user');
    }
    const untilMs = performance.now() + REFUSAL_MS;
    this.#refused.set(key, { operation, subject: known?.subject ?? subject, untilMs });
  }

  /** A publication there was stored. */
  notePublished(subject: string): void {
    this.#refused.delete(`publish ${subject}`);
  }

  /** The server does not let us ring. */
  get isMuted(): boolean {
    this.#forgetOld();
    return this.#refused.has(MUTED);
  }

  problems(): BusProblem[] {
    this.#forgetOld();
    return [...this.#refused.values()].map(({ operation, subject }) =>
      operation === 'publish' ? publishRefused(subject) : fleetUnheard(subject),
    );
  }

  clear(): void {
    this.#refused.clear();
  }

  #forgetOld(): void {
    for (const [key, { untilMs }] of this.#refused) {
      if (performance.now() > untilMs) this.#refused.delete(key);
    }
  }
}

export const subscriptionRefused = (subject: string): BusProblem => ({
  name: 'subscription-refused',
  subject,
  reason: `NATS does not let this user listen on ${subject}`,
});

export const fleetUnheard = (subject: string): BusProblem => ({
  name: 'fleet-unheard',
  subject,
  reason: `NATS does not let this user listen on ${subject}`,
});

const publishRefused = (subject: string): BusProblem => ({
  name: 'publish-refused',
  subject,
  reason: `NATS does not let this user publish on ${subject}`,
});

/** What an agent without the right to ask does without: all that is JetStream's but the jobs, and the name of before. */
const isQuestion = (subject: string): boolean =>
  (subject.startsWith('$JS.API.') && !subject.includes('.MSG.NEXT.')) ||
  subject === `$SRV.INFO.${SERVICE_NAME}`;

/** What is asked for with a random end, once. */
const inboxesOf = (subject: string): string => `${subject.split('.').slice(0, 2).join('.')}.>`;
