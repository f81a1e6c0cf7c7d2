import { readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import type { CordonAnswer, CordonRequest } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Log } from '../log.ts';
import { writeDurably } from '../storage/durable-file.ts';

const VERSION = 1;
const stateSchema = z.object({ since: z.string(), reason: z.string().optional() });
/** `cordon` is null for a host that is open. */
const fileSchema = z.object({ version: z.literal(VERSION), cordon: stateSchema.nullable() });

/** Since when, and why, a host takes no new attachments. */
export type CordonState = z.infer<typeof stateSchema>;

export const wordsOf = ({ since, reason }: CordonState): string =>
  `cordoned since ${since}${reason === undefined ? '' : `: ${reason}`}`;

/**
 * Whether an operator has closed this host to new attachments. It is kept in the state folder, so it outlives the agent
 * and the machine's boots. What is attached already stays, and may be repeated, updated and detached.
 */
export class Cordon {
  readonly #host: string;
  readonly #path: string;
  readonly #log: Log;
  #current: CordonState | undefined;
  /** Orders are stored one after the other: the last one holds. */
  #storing: Promise<void> = Promise.resolve();

  constructor({ host, stateDir, log }: { host: string; stateDir: string; log: Log }) {
    this.#host = host;
    this.#path = join(stateDir, 'cordon.json');
    this.#log = log;
  }

  /** Reads the state folder. A file that cannot be read is set aside and reported: the host is open then. */
  load(): void {
    try {
      const { cordon } = fileSchema.parse(JSON.parse(readFileSync(this.#path, 'utf8')));
      this.#current = cordon ?? undefined;
    } catch (error) {
      if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return;
      renameSync(this.#path, `${this.#path}.corrupt`);
      this.#log.error(
        { file: this.#path, error: String(error) },
        'cordon file set aside: it cannot be read, and the host takes new attachments',
      );
    }
  }

  /** Undefined for a host that takes new attachments. */
  get current(): CordonState | undefined {
    return this.#current;
  }

  /** Throws HOST_CORDONED if the host takes no new attachments. */
  refuseNew(): void {
    if (this.#current === undefined) return;
    throw new VoltError('HOST_CORDONED', `${this.#host} is ${wordsOf(this.#current)}`, {
      details: { ...this.#current },
    });
  }

  /** Resolves when it is on disk. A repeated cordon keeps its beginning, and gets the new reason. */
  async set({ cordoned, reason }: CordonRequest): Promise<CordonAnswer> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const before = this.#storing;
    this.#storing = promise;
    await before;
    try {
      const since = this.#current?.since ?? new Date().toISOString();
      const wanted = cordoned ? { since, ...(reason !== undefined && { reason }) } : undefined;
      await writeDurably(this.#path, { version: VERSION, cordon: wanted ?? null });
      this.#current = wanted;
    } finally {
      resolve();
    }
    return { host: this.#host, cordoned, ...this.#current };
  }
}
