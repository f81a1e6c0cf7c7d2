import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { fromErrorBody, VoltError } from '#protocol/errors.ts';
import type { KernelOperation } from '#native/trace.ts';
import type { Log } from '../../log.ts';
import { nobodyWaits } from '../../schedule/slices.ts';
import { IdLocks, withDeadline } from '../../schedule/id-lock.ts';
import type { DryRunOrder } from './dry-run.ts';

/** What the thread is told at its start: the host's id and the name of its nftables table. */
export interface DryRunSettings {
  readonly host: string;
  readonly nftablesTable: string;
}

/** One dry run, as plain data. */
export interface QueuedDryRun extends DryRunOrder {
  /** The host's firewall knows the network's bridge: the one-time set-up of the bridge is done already. */
  readonly knowsBridge: boolean;
}

const THREAD = new URL(import.meta.resolve('#agent/host/networks/dry-run-thread.ts'));
const IDLE_MS = 60_000;
/** A thread that takes longer is stuck in the kernel, or has been lost. */
const STUCK_MS = 30_000;
const END_MS = 1_000;
const ONE = 'dry-run';

/**
 * Dry runs, one at a time, in a thread of their own: loading the rules of a throw-away firewall alone takes tens of
 * milliseconds. The thread is started when it is needed, ended after an idle minute, and replaced if it dies.
 */
export class DryRuns {
  readonly #settings: DryRunSettings;
  readonly #log: Log;
  readonly #file: URL;
  readonly #idleMs: number;
  readonly #stuckMs: number;
  readonly #locks = new IdLocks();
  #thread: Thread | undefined;
  #idle: NodeJS.Timeout | undefined;
  /** A thread that was given up and has not ended yet. */
  #stuck: Thread | undefined;

  constructor(options: {
    settings: DryRunSettings;
    log: Log;
    file?: URL;
    idleMs?: number;
    stuckMs?: number;
  }) {
    this.#settings = options.settings;
    this.#log = options.log;
    this.#file = options.file ?? THREAD;
    this.#idleMs = options.idleMs ?? IDLE_MS;
    this.#stuckMs = options.stuckMs ?? STUCK_MS;
  }

  /**
   * The changes that an attach would make in the kernel, in order. Errors are those that the attach would meet;
   * DEADLINE_EXCEEDED where it takes longer than until `deadline` (`performance.now()` time).
   */
  async dryRun(order: QueuedDryRun, deadline: number): Promise<readonly KernelOperation[]> {
    // The next dry run waits for the end of this one, even if nobody waits for this one any more.
    const running = this.#locks.take(ONE, deadline, () => this.#run(order));
    await withDeadline(running, deadline, nobodyWaits);
    return running;
  }

  /** Ends the thread; a dry run under way may take no more than END_MS. */
  async close(): Promise<void> {
    clearTimeout(this.#idle);
    const thread = this.#thread;
    this.#thread = undefined;
    await thread?.end();
  }

  async #run(order: QueuedDryRun): Promise<readonly KernelOperation[]> {
    clearTimeout(this.#idle);
    if (this.#stuck !== undefined) {
      throw new VoltError('OVERLOADED', 'an earlier dry run has not ended');
    }
    const thread = (this.#thread ??= this.#start());
    try {
      return operationsIn(await thread.ask(order, this.#stuckMs));
    } finally {
      this.#idle = setTimeout(() => void this.close(), this.#idleMs).unref();
    }
  }

  #start(): Thread {
    const thread = new Thread(this.#file, this.#settings);
    void thread.over.then((reason) => {
      if (this.#stuck === thread) this.#stuck = undefined;
      if (this.#thread !== thread) return;
      this.#thread = undefined;
      this.#log.error({ reason }, 'the dry-run thread has died: the next dry run gets a new one');
    });
    void thread.lost.then(() => {
      this.#log.error({}, 'a dry run does not end: its thread is given up');
      if (this.#thread === thread) this.#thread = undefined;
      if (!thread.hasEnded) this.#stuck = thread;
    });
    return thread;
  }
}

/** One thread, and the question that it answers. */
class Thread {
  readonly #worker: Worker;
  /** Resolves with the reason when the thread has ended. */
  readonly over: Promise<string>;
  readonly #lost = Promise.withResolvers<void>();
  /** Resolves when the thread has not answered for too long. */
  readonly lost = this.#lost.promise;
  hasEnded = false;

  constructor(file: URL, settings: DryRunSettings) {
    this.#worker = new Worker(file, {
      name: ONE,
      workerData: settings,
      resourceLimits: { maxOldGenerationSizeMb: 128, maxYoungGenerationSizeMb: 8 },
    });
    // The thread does not keep the process running.
    this.#worker.unref();
    const { promise, resolve } = Promise.withResolvers<string>();
    this.over = promise;
    this.#worker.once('error', (error) => resolve(String(error)));
    this.#worker.once('exit', (code) => {
      this.hasEnded = true;
      resolve(`exit ${code}`);
    });
  }

  async ask(order: QueuedDryRun, stuckMs: number): Promise<unknown> {
    const { promise, resolve } = Promise.withResolvers<unknown>();
    this.#worker.once('message', resolve);
    const timer = new AbortController();
    try {
      this.#worker.postMessage(order, []);
      const answer = await Promise.race([
        promise,
        this.over.then((reason) => {
          const message = `the dry-run thread has died: ${reason}`;
          throw new VoltError('INTERNAL', message, { retryable: true });
        }),
        sleep(stuckMs, LOST, { signal: timer.signal }),
      ]);
      if (answer !== LOST) return answer;
      this.#lost.resolve();
      void this.#worker.terminate();
      throw new VoltError('DEADLINE_EXCEEDED', `a dry run has taken more than ${stuckMs} ms`);
    } finally {
      timer.abort();
      this.#worker.off('message', resolve);
    }
  }

  /** Lets the thread close what it has open, and ends it. */
  async end(): Promise<void> {
    this.#worker.postMessage(null, []);
    const timer = new AbortController();
    await Promise.race([this.over, sleep(END_MS, undefined, { signal: timer.signal })]);
    timer.abort();
    if (!this.hasEnded) void this.#worker.terminate();
  }
}

const LOST = Symbol('lost');

function operationsIn(reply: unknown): readonly KernelOperation[] {
  const error = fromErrorBody(reply);
  if (error !== null) throw error;
  if (isDone(reply)) return reply.operations;
  throw new Error('the dry-run thread has sent an unexpected answer');
}

const isDone = (reply: unknown): reply is { readonly operations: readonly KernelOperation[] } =>
  typeof reply === 'object' && reply !== null && 'operations' in reply;
