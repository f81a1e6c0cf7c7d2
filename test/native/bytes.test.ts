import { describe, expect, test } from 'vitest';
import type { Golden } from './golden.ts';
import { GOLDEN_ADDRESSES } from './golden-addresses.ts';
import { GOLDEN_LINKS } from './golden-links.ts';
import { GOLDEN_TRAFFIC } from './golden-traffic.ts';

const cases = [...GOLDEN_LINKS, ...GOLDEN_ADDRESSES, ...GOLDEN_TRAFFIC].map(
  (one): [string, Golden] => [one.command, one],
);

describe('the same bytes as iproute2', () => {
  test.each(cases)('%s', (_command, { hex, written }) => {
    expect(written).toBe(hex);
  });
});

describe('what iproute2 sends is read as it was meant', () => {
  test.each(cases)('%s', (_command, { meant, read }) => {
    expect(read).toEqual(meant);
  });
});
