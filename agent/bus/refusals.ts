import { SERVICE_NAME, subjects } from '#protocol/subjects.ts';
import type { BusProblem } from './bus-problems.ts';
import type { Log } from '../log.ts';
import type { Refused } from './nats-connection.ts';

/** A refusal that is not repeated within this time is over: a subject that is still refused is tried sooner. */
const REFUSAL_MS = 10_000;
/** The key of notices: if one is refused, all are. */
const NOTICES = 'notices';
/** The key of answers: each goes to a subject of its own, which its caller has chosen. */
const ANSWERS = 'answers';

/** The publications and inboxes that the server has refused lately. Lasting subscriptions are not among them. */
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
      this.#log.debug(
        { subject: exact },
        'NATS refuses a question of the agent, which does without the answer',
      );
      return;
    }
    const kind = subjects(this.#prefix).match(exact)?.kind;
    const isAnswer = isPublication && kind === undefined && !exact.startsWith('$');
    const isNotice = isPublication && kind === 'changed';
    const subject = isPublication && !isAnswer ? exact : inboxesOf(exact);
    const key = isNotice ? NOTICES : isAnswer ? ANSWERS : `${operation} ${subject}`;
    const known = this.#refused.get(key);
    if (known === undefined) {
      this.#log.warn({ operation, subject }, 'NATS refuses this user a subject');
    }
    const untilMs = performance.now() + REFUSAL_MS;
    this.#refused.set(key, { operation, subject: known?.subject ?? subject, untilMs });
  }

  /** A message on this subject was stored. */
  notePublished(subject: string): void {
    this.#refused.delete(`publish ${subject}`);
  }

  /** The server refuses our notices. */
  get refusesNotices(): boolean {
    this.#forgetOld();
    return this.#refused.has(NOTICES);
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

/**
 * Questions that an agent without the right to ask does without: everything of JetStream except its jobs, and the
 * earlier service name.
 */
const isQuestion = (subject: string): boolean =>
  (subject.startsWith('$JS.API.') && !subject.includes('.MSG.NEXT.')) ||
  subject === `$SRV.INFO.${SERVICE_NAME}`;

/** Subjects with a random end, each used once. */
const inboxesOf = (subject: string): string => `${subject.split('.').slice(0, 2).join('.')}.>`;
