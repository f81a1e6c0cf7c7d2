import type { JetStreamManager } from 'nats';
import { BusProblemError, cannotBeAsked } from './bus-problems.ts';
import { consumerIn, ensureJobConsumer, type JobPlace, jobPlaces } from './job-consumer.ts';
import type { Log } from '../log.ts';
import type { StreamSettings } from './stream-settings.ts';
import { ensureJobStream, type Ensured } from './streams.ts';

export interface JobFinderOptions {
  readonly host: string;
  readonly subjectPrefix: string;
  readonly streams: StreamSettings;
  readonly log: Log;
}

/** Finds the jobs of one host in JetStream, under the names that they have or may have. */
export class JobFinder {
  readonly #options: JobFinderOptions;
  /** Which of the places is tried if JetStream tells nothing about any. */
  #guess = 0;
  /** Differences that were logged. */
  readonly #told = new Set<string>();

  constructor(options: JobFinderOptions) {
    this.#options = options;
  }

  /** The place was of no use: if it was a guess, the next time another one is tried. */
  guessAgain(): void {
    this.#guess += 1;
  }

  /**
   * Where the host's jobs are; a missing stream or consumer is made. If the agent may not ask JetStream, an
   * administrator has made them, or taking jobs will say what is missing. Throws BusProblemError for a stream or
   * consumer that cannot serve.
   */
  async find(manager: JetStreamManager): Promise<JobPlace> {
    const { host, subjectPrefix: prefix, streams: settings } = this.#options;
    const guesses = jobPlaces(prefix, host);
    const guess = guesses[this.#guess % guesses.length];
    const found = await this.#found('stream-unfit', () =>
      ensureJobStream(manager, { prefix, host, settings }),
    );
    const stream = found?.name ?? guess?.stream ?? '';
    await this.#found('consumer-unfit', () => ensureJobConsumer(manager, { prefix, host, stream }));
    return { stream, consumer: consumerIn(stream, { prefix, host }) };
  }

  /** Undefined if JetStream tells this user nothing about it. */
  async #found(
    unfit: 'stream-unfit' | 'consumer-unfit',
    ensure: () => Promise<Ensured>,
  ): Promise<Ensured | undefined> {
    let ensured: Ensured;
    try {
      ensured = await ensure();
    } catch (error) {
      if (cannotBeAsked(error)) return undefined;
      throw error;
    }
    const { log } = this.#options;
    const { name, outcome, differences } = ensured;
    const [first = ''] = differences;
    if (outcome === 'unfit') {
      throw new BusProblemError({ name: unfit, subject: name, reason: first });
    }
    if (outcome === 'differs' && !this.#told.has(first)) {
      this.#told.add(first);
      log.warn(
        { name, differences },
        'JetStream: the stream or consumer is configured otherwise than asked for, and used as it is',
      );
    }
    return ensured;
  }
}
