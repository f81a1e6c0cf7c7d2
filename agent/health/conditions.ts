import { type Condition, type ConditionName, CONDITIONS } from '#protocol/conditions.ts';
import { redacted } from '#protocol/secrets.ts';
import type { Log } from '../log.ts';

/** A condition, as the part of the agent that it concerns reports it. */
export interface Found {
  readonly name: ConditionName;
  readonly reason: string;
}

export type Probe = () => readonly Found[];

const LOOK_EVERY_MS = 1_000;
/**
 * So many reasons of one condition are told: nobody reads more, and all of them have to fit into one packet of the
 * local socket.
 */
const MAX_REASON_LENGTH = 1_000;
/** A reason that changes is logged again, no more often than this: some reasons change all the time. */
const REASON_TOLD_EVERY_MS = 60_000;

interface Known extends Condition {
  readonly sinceMs: number;
  toldReason: string;
  toldAtMs: number;
}

/**
 * What is wrong with this agent, in one table for all who show it (`health`, the service's metadata, the log). Each
 * part is asked once a second and whenever somebody wants to know. Each condition is logged when it begins and when
 * it is over.
 */
export class Conditions {
  readonly #probes: readonly Probe[];
  readonly #log: Log;
  #known: ReadonlyMap<ConditionName, Known> = new Map();
  #timer: NodeJS.Timeout | undefined;

  constructor({ probes, log }: { probes: readonly Probe[]; log: Log }) {
    this.#probes = probes;
    this.#log = log;
  }

  start(): void {
    this.#timer = setInterval(() => this.look(), LOOK_EVERY_MS).unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** What is wrong now; conditions that block attaches come first. */
  look(): readonly Condition[] {
    const now = Date.now();
    const before = this.#known;
    const found = this.#found();
    this.#known = new Map(
      [...found].map(([name, reason]) => [name, this.#noted(name, reason, now)] as const),
    );
    for (const [name, { sinceMs }] of before) {
      if (found.has(name)) continue;
      const lastedSeconds = Math.round((now - sinceMs) / 1_000);
      this.#log.warn({ condition: name, lastedSeconds }, `${name} is over`);
    }
    return [...this.#known.values()]
      .map(({ name, area, blocks, reason, since, remedy }) => ({
        ...{ name, area, blocks, reason, since, remedy },
      }))
      .toSorted((a, b) => Number(b.blocks) - Number(a.blocks));
  }

  /** Several reasons of one condition become one text, as far as there is room. */
  #found(): Map<ConditionName, string> {
    const found = new Map<ConditionName, string[]>();
    for (const probe of this.#probes) {
      for (const { name, reason } of probe()) {
        found.set(name, [...(found.get(name) ?? []), redacted(reason)]);
      }
    }
    return new Map([...found].map(([name, reasons]) => [name, together(reasons)] as const));
  }

  #noted(name: ConditionName, reason: string, now: number): Known {
    const { area, blocks, remedy } = CONDITIONS[name];
    const known = this.#known.get(name);
    const sinceMs = known?.sinceMs ?? now;
    const told = known !== undefined && now - known.toldAtMs < REASON_TOLD_EVERY_MS;
    const tells = known?.toldReason !== reason && !told;
    if (tells) this.#log.warn({ condition: name, reason, blocks, remedy }, `${name}: ${reason}`);
    return {
      ...{ name, area, blocks, reason, remedy, sinceMs },
      since: new Date(sinceMs).toISOString(),
      toldReason: tells ? reason : (known?.toldReason ?? reason),
      toldAtMs: tells ? now : (known?.toldAtMs ?? now),
    };
  }
}

function together(reasons: readonly string[]): string {
  let length = 0;
  const told = reasons.filter((reason, index) => {
    length += reason.length;
    return index === 0 || length <= MAX_REASON_LENGTH;
  });
  const left = reasons.length - told.length;
  const text = told.map((reason) => reason.slice(0, MAX_REASON_LENGTH)).join('; ');
  return left === 0 ? text : `${text}; and ${left} more`;
}
