import { isKernelError } from '#native/errors.ts';
import type { Kernel } from '../kernel.ts';
import type { Log } from '../../log.ts';
import { DEVICE_GROUP, isStill } from '../ownership.ts';

const BATCH_LINKS = 64;

interface Doomed {
  readonly index: number;
  readonly alias: string | undefined;
  readonly done: PromiseWithResolvers<void>;
}

/**
 * Deletes devices off the main thread. The kernel waits some 16 ms per deletion, however many devices are deleted. So
 * devices that are added while one deletion runs share the next: one RTM_DELLINK by group, 64 devices at most. Every
 * batch has a group number of its own that nothing else has.
 */
export class Removal {
  readonly #kernel: Kernel;
  readonly #log: Log;
  readonly #waiting: Doomed[] = [];
  #running = false;
  #lastGroup = DEVICE_GROUP;

  /** `kernel` must be the removal's own: an asynchronous deletion occupies its socket. */
  constructor(kernel: Kernel, log: Log) {
    this.#kernel = kernel;
    this.#log = log;
  }

  /** Deletes the link that has this index and alias; resolves when the kernel has confirmed it. */
  delete({ index, alias }: { index: number; alias: string | undefined }): Promise<void> {
    const done = Promise.withResolvers<void>();
    this.#waiting.push({ index, alias, done });
    // The current turn of the event loop may add more devices.
    if (!this.#running) setImmediate(() => void this.#run());
    this.#running = true;
    return done.promise;
  }

  async #run(): Promise<void> {
    while (this.#waiting.length > 0) {
      const batch = this.#waiting.splice(0, BATCH_LINKS);
      try {
        await this.#deleteBatch(batch);
        for (const { done } of batch) done.resolve();
      } catch (error) {
        this.#log.warn({ links: batch.length, error: String(error) }, 'deletion refused');
        for (const { done } of batch) done.reject(error);
      }
    }
    this.#running = false;
  }

  async #deleteBatch(batch: readonly Doomed[]): Promise<void> {
    const { links } = this.#kernel;
    this.#lastGroup += 1;
    const group = this.#lastGroup;
    const marked: number[] = [];
    for (const { index, alias } of batch) {
      const link = links.get(index);
      // The index may have been given to somebody else's device since: the alias tells.
      if (link === null || !isStill({ alias }, link)) continue;
      links.set(index, { group });
      marked.push(index);
    }
    const [only] = marked;
    if (only === undefined) return;
    try {
      if (marked.length === 1) await links.deleteAsync(only);
      else await links.deleteGroupAsync(group);
    } catch (error) {
      if (!isKernelError(error, 'ENODEV')) throw error;
    }
  }
}
