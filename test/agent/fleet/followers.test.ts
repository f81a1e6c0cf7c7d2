import { setImmediate as nextTurn } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Followers } from '#agent/fleet/followers.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Followed } from '#ipam-store/follower.ts';

/** A ledger of empty networks, in which a network's position is how often something has happened. */
class Counted implements Followed {
  readonly positions = new Map<string, number>();
  asked = 0;
  refusal: VoltError | undefined;

  #position(network: string): string {
    this.asked += 1;
    if (this.refusal !== undefined) throw this.refusal;
    return String(this.positions.get(network) ?? 1);
  }

  snapshot: Followed['snapshot'] = async (network) => ({
    position: this.#position(network),
    revision: 1,
    leases: [],
  });

  readLog: Followed['readLog'] = async (network) => ({
    gap: false,
    position: this.#position(network),
    leases: [],
    gone: [],
    more: false,
  });
}

let ledger: Counted;
let heard: Set<string>;
let followers: Followers;

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['performance'] });
  ledger = new Counted();
  heard = new Set();
  followers = new Followers({
    ledger,
    subjectPrefix: 'p',
    listen: (subject) => {
      heard.add(subject);
      return () => void heard.delete(subject);
    },
  });
});
afterEach(() => {
  followers.stop();
  vi.useRealTimers();
});

const namesOf = (count: number): string[] =>
  Array.from({ length: count }, (_, n) => `n${String(n).padStart(2, '0')}`);

async function follow(...networks: string[]): Promise<void> {
  for (const network of networks) {
    await followers.of(network).caughtUp();
    vi.advanceTimersByTime(1);
  }
}

const beat = (moved: string[] = [], state: 'armed' | 'recovering' = 'armed'): string[] => {
  const { follows = {} } = followers.follows();
  vi.advanceTimersByTime(1);
  followers.note({ state, moved });
  return Object.keys(follows);
};

test('a heartbeat names sixteen, in turn, and what has moved is read', async () => {
  expect(followers.follows()).toEqual({});
  const all = namesOf(20);
  await follow(...all);
  const [first, second] = [beat(), beat()];
  expect([first.length, second.length]).toEqual([16, 16]);
  expect(new Set([...first, ...second])).toEqual(new Set(all));
  const { asked } = ledger;
  ledger.positions.set('n03', 2);
  beat(['n03', 'of nobody']);
  await nextTurn();
  expect(followers.of('n03').position).toBe('2');
  expect(ledger.asked).toBe(asked + 1);
});

test('what has not moved is as of the heartbeat; of a ledger that is not armed nothing is known', async () => {
  await follow('n00', 'n01');
  const { asOf } = followers.of('n00');
  vi.advanceTimersByTime(1_000);
  beat([], 'recovering');
  expect(followers.of('n00').asOf).toBe(asOf);
  ledger.refusal = new VoltError('RECOVERING', 'not armed');
  beat(['n01']);
  expect(followers.of('n00').asOf).toBeGreaterThan(Number(asOf) + 999);
  expect(followers.of('n01').asOf).toBeLessThan(Number(asOf) + 999);
  await expect(followers.of('n01').caughtUp()).rejects.toMatchObject({ code: 'RECOVERING' });
});

test('what nobody asks for is followed no more, and of too many that asked for longest ago', async () => {
  const all = namesOf(33);
  await follow(...all.slice(0, 32));
  await follow('n00', 'n32');
  expect(heard.has('p.changed.n01.leases')).toBe(false);
  expect(heard.size).toBe(32);
  vi.advanceTimersByTime(4 * 60_000);
  await follow('n07');
  vi.advanceTimersByTime(2 * 60_000);
  beat();
  expect([...heard]).toEqual(['p.changed.n07.leases']);
  const { asked } = ledger;
  followers.nudge(all.slice(8));
  expect(ledger.asked).toBe(asked);
});

test('who waits for a follower that ends is told', async () => {
  ledger.snapshot = () => new Promise(() => {});
  const waiting = followers.of('n00').caughtUp();
  followers.stop();
  await expect(waiting).rejects.toMatchObject({ code: 'SHUTTING_DOWN' });
  expect(heard.size).toBe(0);
});

test('a network that is watched is followed, however many others are, too', async () => {
  const networks = namesOf(50);
  const watched = networks.map((network) => followers.watch(network, () => undefined));
  await until(() => watched.every(({ isWhole }) => isWhole));
  expect(heard.size).toBe(50);
  await follow('asked');
  expect(heard.has('p.changed.asked.leases')).toBe(true);
  for (const one of watched) one[Symbol.dispose]();
});

async function until(holds: () => boolean): Promise<void> {
  for (let turn = 0; turn < 1_000 && !holds(); turn += 1) await nextTurn();
  expect(holds()).toBe(true);
}
