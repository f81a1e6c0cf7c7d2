import type { JetStreamManager } from 'nats';
import { BusProblemError, cannotBeAsked } from './bus-problems.ts';
import { consumerIn, ensureJobConsumer, type JobPlace, jobPlaces } from './job-consumer.ts';
import type { Log } from '../log.ts';
import { ensureJobStream, type Ensured, type StreamSettings } from './streams.ts';

export interface JobFinderOptions {
  readonly host: string;
  readonly subjectPrefix: string;
  readonly streams: StreamSettings;
  readonly log: Log;
}

/** Finds the jobs of one host in JetStream, under the names that they have or may have. */
export class JobFinder {
  readonly #options: JobFinderOptions;
  /** Which of the places is tried where JetStream says nothing of any. */
  #guess = 0;
  /** Differences that were logged. */
  readonly #told = new Set<string>();

  constructor(options: JobFinderOptions) {
    this.#options = options;
  }

  /** What was found was of no use: where it was a guess, the next time another is tried. */
  guessAgain(): void {
    this.#guess += 1;
  }

  /**
   * Where the host's jobs are: what is missing is made. Of what the agent may not ask JetStream, an administrator has seen to
   * it, or what follows says what lacks. Throws BusProblemError for what is there and cannot serve.
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

  /** Undefined where JetStream says nothing of it to this user. */
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
      log.warn({ name, differences }, 'JetStream: configured otherwise');
    }
    return ensured;
  }
}
