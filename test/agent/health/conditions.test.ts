import { pino } from 'pino';
import { expect, test, vi } from 'vitest';
import { Conditions, type Found } from '#agent/health/conditions.ts';
import { CONDITIONS } from '#protocol/conditions.ts';

/** A table over what `found` says at each time, and the lines that it logs. */
function tableOf(found: { now: readonly Found[] }) {
  const lines: string[] = [];
  const log = pino({ base: null }, { write: (line: string) => void lines.push(line) });
  const conditions = new Conditions({ probes: [() => found.now], log });
  const told = (): string[] => lines.map((line) => String(JSON.parse(line).msg));
  return { conditions, told };
}

test('a condition has its reason, since when, and what to do, until it is over', () => {
  vi.useFakeTimers({ now: 1_000_000 });
  const found: { now: readonly Found[] } = { now: [] };
  const { conditions, told } = tableOf(found);
  expect(conditions.look()).toEqual([]);
  found.now = [{ name: 'ledger-away', reason: 'connection refused' }];
  const { area, blocks, remedy } = CONDITIONS['ledger-away'];
  const expected = {
    ...{ name: 'ledger-away', area, blocks, remedy, reason: 'connection refused' },
    since: '1970-01-01T00:16:40.000Z',
  };
  expect(conditions.look()).toEqual([expected]);
  vi.setSystemTime(1_009_000);
  expect(conditions.look()).toEqual([expected]);
  expect(told()).toEqual(['ledger-away: connection refused']);
  found.now = [];
  expect(conditions.look()).toEqual([]);
  expect(told()).toEqual(['ledger-away: connection refused', 'ledger-away is over']);
});

test('what blocks attaches comes first, and reasons of one condition are told in one', () => {
  const now: readonly Found[] = [
    { name: 'clock-skew', reason: 'Redis is 2 s ahead' },
    { name: 'subscription-refused', reason: 'a.b' },
    { name: 'subscription-refused', reason: 'a.c' },
  ];
  const { conditions } = tableOf({ now });
  expect(conditions.look()).toMatchObject([
    { name: 'subscription-refused', reason: 'a.b; a.c' },
    { name: 'clock-skew' },
  ]);
});

test('of very many reasons as many are told as somebody may read', () => {
  const now = Array.from({ length: 10_000 }, (_, n) => ({
    name: 'subscription-refused' as const,
    reason: `NATS does not let this user listen on ${n}`,
  }));
  const [{ reason } = { reason: '' }] = tableOf({ now }).conditions.look();
  expect(reason.length).toBeLessThan(2_000);
  expect(reason).toMatch(/ listen on 0; .* listen on 5; .*; and \d+ more$/);
});

test('a reason that changes all the time is told once a minute', () => {
  vi.useFakeTimers({ now: 0 });
  const found: { now: readonly Found[] } = { now: [] };
  const { conditions, told } = tableOf(found);
  for (let second = 0; second < 125; second += 1) {
    vi.setSystemTime(second * 1_000);
    found.now = [{ name: 'events-waiting', reason: `${second}` }];
    expect(conditions.look()).toMatchObject([
      { reason: `${second}`, since: new Date(0).toISOString() },
    ]);
  }
  expect(told()).toEqual(['events-waiting: 0', 'events-waiting: 60', 'events-waiting: 120']);
});

test('no secret is told', () => {
  const now: readonly Found[] = [{ name: 'bus-away', reason: 'nats://me:pw@host: refused' }];
  const { conditions, told } = tableOf({ now });
  expect(JSON.stringify([conditions.look(), told()])).not.toContain('pw');
});
