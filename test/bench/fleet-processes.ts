import { type ChildProcess, fork } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { answerSchema, type HostsStatus, type Order, statusSchema } from './fleet-orders.ts';

const PROCESSES = 2;
const PLAYER = fileURLToPath(new URL('./fleet-hosts.ts', import.meta.url));
const LOOK_MS = 100;
/** In memory: hosts have a disk each, and would wait here for one. */
const FOLDERS = '/dev/shm';

interface Settings {
  readonly url: string;
  readonly hosts: number;
  /** Of each process; 0 for one each host. */
  readonly connections: number;
  readonly suspectAfterSeconds: number;
  readonly nats?: string;
  readonly isNew?: boolean;
  /** The first is `h<first>`. */
  readonly first?: number;
}

/** Hosts of one fleet, in several processes, with their state folders. */
export class Processes {
  readonly #children: readonly ChildProcess[];
  readonly #folder: string;
  readonly #waiting = new Map<number, (answer: { status?: HostsStatus; error?: string }) => void>();
  #order = 0;

  private constructor() {
    this.#folder = mkdtempSync(join(FOLDERS, 'volt-bench-fleet-'));
    this.#children = Array.from({ length: PROCESSES }, () => fork(PLAYER));
    for (const child of this.#children) {
      child.on('message', (message) => {
        const { order, ...answer } = answerSchema.parse(message);
        this.#waiting.get(order)?.({
          ...(answer.status !== undefined && { status: answer.status }),
          ...(answer.error !== undefined && { error: answer.error }),
        });
        this.#waiting.delete(order);
      });
    }
  }

  static async make({ first = 0, hosts, isNew = true, ...rest }: Settings): Promise<Processes> {
    const made = new Processes();
    await made.#each((n) => ({
      do: 'make',
      folder: made.#folder,
      from: first + n,
      to: first + hosts,
      step: PROCESSES,
      boot: 'boot-1',
      isNew,
      ...rest,
    }));
    return made;
  }

  /** All processes do it at once; the answer is of all hosts together. */
  async tell(order: Exclude<Order, { do: 'make' }>): Promise<HostsStatus | undefined> {
    return sumOf(await this.#each(() => order));
  }

  /** The first process alone. */
  async tellFirst(order: Exclude<Order, { do: 'make' }>): Promise<void> {
    const [child] = this.#children;
    if (child !== undefined) await this.#send(child, order);
  }

  /** Seconds until it is so; null where it is not within the time. */
  async until(done: (status: HostsStatus) => boolean, seconds: number): Promise<number | null> {
    const began = performance.now();
    for (;;) {
      const status = await this.tell({ do: 'status' });
      const passed = (performance.now() - began) / 1_000;
      if (status !== undefined && done(status)) return passed;
      if (passed > seconds) return null;
      await sleep(LOOK_MS);
    }
  }

  async close(): Promise<void> {
    const ended = this.#children.map(
      (child) => new Promise((resolve) => child.once('exit', resolve)),
    );
    for (const child of this.#children) child.disconnect();
    await Promise.all(ended);
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #each(orderOf: (n: number) => Order): Promise<(HostsStatus | undefined)[]> {
    return Promise.all(this.#children.map(async (child, n) => this.#send(child, orderOf(n))));
  }

  #send(child: ChildProcess, what: Order): Promise<HostsStatus | undefined> {
    this.#order += 1;
    const order = this.#order;
    return new Promise((resolve, reject) => {
      this.#waiting.set(order, ({ status, error }) => {
        if (error === undefined) resolve(status);
        else reject(new Error(`hosts: ${error}`));
      });
      child.send({ order, what });
    });
  }
}

function sumOf(parts: readonly (HostsStatus | undefined)[]): HostsStatus | undefined {
  return parts.reduce((sum, part) => {
    if (sum === undefined || part === undefined) return part;
    const others: Readonly<Record<string, number>> = part;
    const added = Object.entries(sum).map(([key, value]) => [key, value + (others[key] ?? 0)]);
    const least = {
      networks: Math.min(sum.networks, part.networks),
      listed: Math.min(sum.listed, part.listed),
    };
    return statusSchema.parse({ ...Object.fromEntries(added), ...least });
  });
}
