import { describe, expect, test } from 'vitest';
import { type Held, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_UID, placeFor } from '#native/shares.ts';

const held = (uid: number, heardAt: number, closed = false): Held => ({
  peer: { uid },
  heardAt,
  closed,
});
/** `count` connections of an account; the first has been silent for longest. */
const many = (uid: number, count: number, closed = false): Held[] =>
  Array.from({ length: count }, (_, n) => held(uid, n, closed));
const full = (accounts: number): Held[] =>
  Array.from({ length: accounts }, (_, n) => many(1_000 + n, MAX_CONNECTIONS / accounts)).flat();

describe('a newcomer', () => {
  test('is admitted where there is room, up to the share of its account', () => {
    expect(placeFor(1, [])).toEqual({ admitted: true });
    expect(placeFor(1, many(1, MAX_CONNECTIONS_PER_UID - 1))).toEqual({ admitted: true });
    expect(placeFor(1, many(1, MAX_CONNECTIONS_PER_UID))).toEqual({ admitted: false });
  });

  test('of root is admitted always, and root’s connections are nobody’s loss', () => {
    expect(placeFor(0, full(8))).toEqual({ admitted: true });
    expect(placeFor(1, many(0, 2 * MAX_CONNECTIONS))).toEqual({ admitted: true });
  });

  test('of an account with fewer takes the place of the one silent for longest', () => {
    const connections = full(8);
    const busiest = held(1_003, -1);
    expect(placeFor(1, [...connections.slice(1), busiest])).toEqual({
      admitted: true,
      instead: busiest,
    });
  });

  test('takes nobody’s place who has no more than itself', () => {
    const one = Array.from({ length: MAX_CONNECTIONS }, (_, n) => held(1_000 + n, n));
    expect(placeFor(1, one)).toEqual({ admitted: true, instead: one[0] });
    expect(placeFor(1_000, one)).toEqual({ admitted: false });
  });

  test('takes the place of none that is closed already, and then of one that is not', () => {
    const gone = [...many(1_000, 64, true), ...many(1_001, 40)];
    const rest = Array.from({ length: MAX_CONNECTIONS - gone.length }, (_, n) =>
      held(2_000 + n, n),
    );
    const { instead } = placeFor(1, [...gone, ...rest]);
    expect(instead).toMatchObject({ peer: { uid: 1_001 }, heardAt: 0 });
  });

  test('is refused where everybody is on the way out', () => {
    expect(
      placeFor(
        1,
        full(8).map((one) => ({ ...one, closed: true })),
      ),
    ).toEqual({
      admitted: false,
    });
    const twice = Array.from({ length: 2 * MAX_CONNECTIONS }, (_, n) => held(2_000 + n, n));
    expect(placeFor(1, twice)).toEqual({ admitted: false });
  });
});
