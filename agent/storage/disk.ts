import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const TRY_EVERY_MS = 5_000;
/** A block of every usual file system. Less than a block may find room in an inode on a full disk. */
const BLOCK = Buffer.alloc(4_096, 1);

/**
 * Tries every five seconds whether the agent can write a record to its folders: it writes a block and removes it
 * again.
 */
export class Disk {
  readonly #folders: readonly string[];
  #problems: readonly string[] = [];
  #timer: NodeJS.Timeout | undefined;

  constructor(folders: readonly string[]) {
    this.#folders = folders;
  }

  /** Why the folders cannot be written to, each with its reason; empty when all can. */
  get problems(): readonly string[] {
    return this.#problems;
  }

  start(): void {
    this.#try();
    this.#timer = setInterval(() => this.#try(), TRY_EVERY_MS).unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #try(): void {
    this.#problems = this.#folders.flatMap((folder) => refusalOf(folder) ?? []);
  }
}

function refusalOf(folder: string): string | undefined {
  const file = join(folder, '.room');
  try {
    try {
      writeFileSync(file, BLOCK, { mode: 0o600 });
    } finally {
      rmSync(file, { force: true });
    }
    return undefined;
  } catch (error) {
    return `${folder}: ${error instanceof Error ? error.message : String(error)}`;
  }
}
