import { execFileSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { Changes } from '#native/netlink-events.ts';
import { RTNLGRP_IPV4_IFADDR } from '#native/rtnetlink.ts';

const ip = (lines: readonly string[]): void =>
  void execFileSync('ip', ['-batch', '-'], { input: lines.join('\n') });

test('a change that was made before the question is in the answer, once', () => {
  using changes = new Changes([RTNLGRP_IPV4_IFADDR]);
  expect(changes.any()).toBe(false);
  ip(['addr add 192.0.2.7/32 dev lo']);
  expect(changes.any()).toBe(true);
  expect(changes.any()).toBe(false);
  ip(['link set lo alias other']);
  expect(changes.any()).toBe(false);
  ip(['addr del 192.0.2.7/32 dev lo']);
  expect(changes.any()).toBe(true);
});

test('more changes than the kernel keeps are a change, and the next one is seen', () => {
  using changes = new Changes([RTNLGRP_IPV4_IFADDR]);
  const addresses = Array.from({ length: 4_000 }, (_, n) => `10.9.${n >> 8}.${n & 255}/32 dev lo`);
  ip(addresses.map((one) => `addr add ${one}`));
  expect(changes.any()).toBe(true);
  expect(changes.any()).toBe(false);
  ip(addresses.slice(0, 1).map((one) => `addr del ${one}`));
  expect(changes.any()).toBe(true);
  ip(addresses.slice(1).map((one) => `addr del ${one}`));
});
