import { Redis } from 'ioredis';
import type { Server } from '../support/servers.ts';

/** What a Redis has done so far. */
export interface Reading {
  /** Of one core. */
  readonly cpuMs: number;
  /** Function calls, and what they took. */
  readonly calls: number;
  readonly callsUs: number;
  readonly bytesIn: number;
  readonly bytesOut: number;
}

export const NOTHING_READ: Reading = { cpuMs: 0, calls: 0, callsUs: 0, bytesIn: 0, bytesOut: 0 };

/** Functions that take less are not noted one by one. */
const SLOW_US = 1_000;

/** The longest call of each function, in microseconds. */
export type Longest = Map<string, number>;

/** Reads what a Redis costs, behind the back of the ledger. */
export class Meter {
  readonly #raw: Redis;
  readonly #longest: Longest;

  private constructor(raw: Redis, longest: Longest) {
    this.#raw = raw;
    this.#longest = longest;
  }

  static async open(redis: Server, longest: Longest): Promise<Meter> {
    const raw = new Redis(redis.url);
    raw.on('error', () => {});
    await raw.config('SET', 'slowlog-log-slower-than', SLOW_US);
    await raw.config('SET', 'slowlog-max-len', 10_000);
    return new Meter(raw, longest);
  }

  async read(): Promise<Reading> {
    const text = `${await this.#raw.info('cpu')}${await this.#raw.info('stats')}${await this.#raw.info('commandstats')}`;
    const number = (pattern: RegExp): number => Number(pattern.exec(text)?.[1] ?? 0);
    const cpuS = number(/used_cpu_sys:([\d.]+)/) + number(/used_cpu_user:([\d.]+)/);
    return {
      cpuMs: cpuS * 1_000,
      calls: number(/cmdstat_fcall:calls=(\d+)/),
      callsUs: number(/cmdstat_fcall:calls=\d+,usec=(\d+)/),
      bytesIn: number(/total_net_input_bytes:(\d+)/),
      bytesOut: number(/total_net_output_bytes:(\d+)/),
    };
  }

  async memoryBytes(): Promise<number> {
    return Number(/used_memory:(\d+)/.exec(await this.#raw.info('memory'))?.[1]);
  }

  /** Of the calls since the server began, or since this was asked last, the longest of each function. */
  async noteLongest(): Promise<void> {
    const entries: unknown = await this.#raw.slowlog('GET', 10_000);
    await this.#raw.slowlog('RESET');
    for (const entry of Array.isArray(entries) ? entries : []) {
      const [, , us, args] = Array.isArray(entry) ? entry : [];
      const [command, name] = Array.isArray(args) ? args.map(String) : [];
      if (command?.toLowerCase() !== 'fcall' || name === undefined) continue;
      this.#longest.set(name, Math.max(this.#longest.get(name) ?? 0, Number(us)));
    }
  }

  close(): void {
    this.#raw.disconnect();
  }
}

export const between = (before: Reading, after: Reading): Reading => ({
  cpuMs: after.cpuMs - before.cpuMs,
  calls: after.calls - before.calls,
  callsUs: after.callsUs - before.callsUs,
  bytesIn: after.bytesIn - before.bytesIn,
  bytesOut: after.bytesOut - before.bytesOut,
});
