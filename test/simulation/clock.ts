import { AsyncLocalStorage } from 'node:async_hooks';
import crypto from 'node:crypto';
import fs from 'node:fs';
import files from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import timers from 'node:timers/promises';

// Time, chance and disk latency of a simulation. They are put in the place of Node's own, and hold for what runs in a
// simulation alone: everything else in the process, the test runner first, has the real ones.

/** One process that can be killed: nothing of it happens any more once it is dead. */
export interface Life {
  readonly name: string;
  readonly clock: Clock;
  dead: boolean;
  /** Asked before every step that leaves something behind. It may die there: then what follows is without effect. */
  readonly killPoint: () => void;
  /** Descriptors that it has open. */
  readonly open: Set<number>;
}

interface Due {
  readonly atMs: number;
  readonly order: number;
  readonly life: Life;
  readonly run: () => void;
}

export const NEVER = new Promise<never>(() => {});
const context = new AsyncLocalStorage<Life>();
const START_MS = Date.parse('2026-01-01T00:00:00Z');
const { setImmediate: realTurn } = globalThis;

/** A seeded generator (mulberry32). */
export class Chance {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** From 0 to below 1. */
  next(): number {
    this.#state = (this.#state + 0x6d_2b_79_f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }

  /** True so many times of one. */
  happens(probability: number): boolean {
    return this.next() < probability;
  }

  /** A whole number from `least` to `most`. */
  between(least: number, most: number): number {
    return least + Math.floor(this.next() * (most - least + 1));
  }

  pick<T>(items: readonly T[]): T {
    const item = items[this.between(0, items.length - 1)];
    if (item === undefined) throw new RangeError('nothing to pick from');
    return item;
  }
}

/**
 * Virtual time: what is due happens in order of its time, each with all that follows from it at once, before the next.
 */
export class Clock {
  readonly chance: Chance;
  /** What is not of any process: networks, servers, people. */
  readonly world: Life = {
    name: 'world',
    clock: this,
    dead: false,
    killPoint: () => {},
    open: new Set(),
  };
  /** What has happened, and when. */
  readonly trace: string[] = [];
  #nowMs = 0;
  #order = 0;
  readonly #due = new Map<number, Due>();

  constructor(seed: number) {
    this.chance = new Chance(seed);
  }

  get elapsedMs(): number {
    return this.#nowMs;
  }

  get dateMs(): number {
    return START_MS + Math.floor(this.#nowMs);
  }

  note(what: string): void {
    this.trace.push(`${this.#nowMs.toFixed(1)} ${what}`);
  }

  /** Answers a number for `cancel`. */
  after(delayMs: number, life: Life, run: () => void): number {
    this.#order += 1;
    // Of two with one time either may be first.
    const atMs = this.#nowMs + Math.max(0, delayMs) + this.chance.next() / 10;
    this.#due.set(this.#order, { atMs, order: this.#order, life, run });
    return this.#order;
  }

  cancel(order: number): void {
    this.#due.delete(order);
  }

  /** Lets what is due next happen. False when that is later than `untilMs`. */
  async step(untilMs: number): Promise<boolean> {
    let next: Due | undefined;
    for (const due of this.#due.values()) {
      if (due.life.dead) this.#due.delete(due.order);
      else if (next === undefined || due.atMs < next.atMs) next = due;
    }
    if (next === undefined || next.atMs > untilMs) {
      this.#nowMs = Math.max(this.#nowMs, untilMs);
      return false;
    }
    this.#due.delete(next.order);
    this.#nowMs = Math.max(this.#nowMs, next.atMs);
    inside(next.life, next.run);
    await new Promise<void>((resolve) => {
      realTurn(resolve);
    });
    return true;
  }
}

/** Does the work, and all that follows from it, as this process. */
export const inside = <T>(life: Life, work: () => T): T => context.run(life, work);

const sleepIn = (life: Life, delayMs: number, value: unknown, signal?: AbortSignal) =>
  new Promise((resolve, reject) => {
    const order = life.clock.after(delayMs, life, () => resolve(value));
    signal?.addEventListener('abort', () => {
      life.clock.cancel(order);
      reject(signal.reason);
    });
  });

class Timer {
  readonly #life: Life;
  order: number;

  constructor(life: Life, delayMs: number, run: () => void, repeat: boolean) {
    this.#life = life;
    this.order = this.#again(delayMs, run, repeat);
  }

  ref(): this {
    return this;
  }

  unref(): this {
    return this;
  }

  clear(): void {
    this.#life.clock.cancel(this.order);
  }

  #again(delayMs: number, run: () => void, repeat: boolean): number {
    return this.#life.clock.after(delayMs, this.#life, () => {
      if (repeat) this.order = this.#again(delayMs, run, repeat);
      run();
    });
  }
}

/** Modules that have imported Node's functions before have these from then on. */
function install(): void {
  const RealDate = Date;
  const real = {
    setTimeout: globalThis.setTimeout,
    setInterval: globalThis.setInterval,
    clearTimeout: globalThis.clearTimeout,
    clearInterval: globalThis.clearInterval,
    now: performance.now.bind(performance),
    sleep: timers.setTimeout,
    turn: timers.setImmediate,
    random: Math.random,
    randomUUID: crypto.randomUUID,
    fsync: fs.fsync,
    fdatasync: fs.fdatasync,
    open: files.open,
    rename: files.rename,
    openSync: fs.openSync,
    closeSync: fs.closeSync,
    writeSync: fs.writeSync,
    renameSync: fs.renameSync,
    rmSync: fs.rmSync,
  };
  const own = {
    setTimeout(run: (...args: unknown[]) => void, delayMs = 0, ...args: unknown[]) {
      const life = context.getStore();
      if (life === undefined) return real.setTimeout(run, delayMs, ...args);
      return new Timer(life, delayMs, () => run(...args), false);
    },
    setInterval(run: (...args: unknown[]) => void, delayMs = 0, ...args: unknown[]) {
      const life = context.getStore();
      if (life === undefined) return real.setInterval(run, delayMs, ...args);
      return new Timer(life, delayMs, () => run(...args), true);
    },
    clearTimeout(timer: unknown) {
      if (timer instanceof Timer) timer.clear();
      else real.clearTimeout(timer as NodeJS.Timeout);
    },
    clearInterval(timer: unknown) {
      if (timer instanceof Timer) timer.clear();
      else real.clearInterval(timer as NodeJS.Timeout);
    },
    Date: class extends RealDate {
      constructor(...given: [number]) {
        const life = context.getStore();
        if (given.length > 0 || life === undefined) super(...given);
        else super(life.clock.dateMs);
      }

      static override now(): number {
        return context.getStore()?.clock.dateMs ?? RealDate.now();
      }
    },
  };
  Object.assign(globalThis, own);
  Math.random = () => context.getStore()?.clock.chance.next() ?? real.random();
  performance.now = () => context.getStore()?.clock.elapsedMs ?? real.now();
  Object.assign(timers, {
    setTimeout(delayMs = 0, value?: unknown, options?: { signal?: AbortSignal }) {
      const life = context.getStore();
      if (life === undefined) return real.sleep(delayMs, value, options);
      return sleepIn(life, delayMs, value, options?.signal);
    },
    setImmediate(value?: unknown) {
      const life = context.getStore();
      return life === undefined ? real.turn(value) : sleepIn(life, 0, value);
    },
  });
  Object.assign(crypto, {
    randomUUID() {
      const chance = context.getStore()?.clock.chance;
      if (chance === undefined) return real.randomUUID();
      const digits = Array.from({ length: 32 }, () => chance.between(0, 15).toString(16)).join('');
      return digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
    },
  });
  // A disk that takes its time: what waits for it can be killed there.
  const synced = (later: typeof fs.fsync) => (fd: number, done: fs.NoParamCallback) => {
    const life = context.getStore();
    if (life === undefined) later(fd, done);
    else life.clock.after(life.clock.chance.between(1, 8), life, () => done(null));
  };
  const killable =
    <Args extends unknown[], Result>(work: (...args: Args) => Result) =>
    (...args: Args): Result => {
      context.getStore()?.killPoint();
      return work(...args);
    };
  Object.assign(fs, {
    fsync: synced(real.fsync),
    fdatasync: synced(real.fdatasync),
    writeSync: killable(real.writeSync),
    renameSync: killable(real.renameSync),
    rmSync: killable(real.rmSync),
    openSync(...args: Parameters<typeof fs.openSync>) {
      const fd = real.openSync(...args);
      context.getStore()?.open.add(fd);
      return fd;
    },
    closeSync(fd: number) {
      context.getStore()?.open.delete(fd);
      real.closeSync(fd);
    },
  });
  Object.assign(files, {
    async open(path: string, flags: string, mode: number) {
      const life = context.getStore();
      if (life === undefined) return real.open(path, flags, mode);
      await sleepIn(life, 1, undefined);
      const fd = fs.openSync(path, flags, mode);
      return {
        writeFile: async (text: string) => void fs.writeSync(fd, text),
        sync: () => sleepIn(life, life.clock.chance.between(1, 8), undefined),
        close: async () => fs.closeSync(fd),
      };
    },
    async rename(from: string, to: string) {
      if (context.getStore() === undefined) return real.rename(from, to);
      fs.renameSync(from, to);
    },
  });
  syncBuiltinESMExports();
}

install();
