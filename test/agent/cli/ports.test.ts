import { expect, test } from 'vitest';
import { parsePort } from '#agent/cli/ports.ts';
import { age, parseBitsPerSecond, parseSeconds } from '#agent/cli/units.ts';

test.each([
  ['8080:80', { protocol: 'tcp', hostPort: 8080, port: 80 }],
  ['tcp:8080:80', { protocol: 'tcp', hostPort: 8080, port: 80 }],
  ['udp:53:5353', { protocol: 'udp', hostPort: 53, port: 5353 }],
  ['53:53/udp', { protocol: 'udp', hostPort: 53, port: 53 }],
  ['5000:5000/sctp', { protocol: 'sctp', hostPort: 5000, port: 5000 }],
  ['127.0.0.1:8080:80', { protocol: 'tcp', hostPort: 8080, port: 80, hostAddress: '127.0.0.1' }],
  ['[fd00::1]:80:8080', { protocol: 'tcp', hostPort: 80, port: 8080, hostAddress: 'fd00::1' }],
  ['udp:127.0.0.1:53:53', { protocol: 'udp', hostPort: 53, port: 53, hostAddress: '127.0.0.1' }],
])('--port %s', (text, port) => {
  expect(parsePort(text)).toEqual(port);
});

test.each([
  '',
  '80',
  ':80',
  '80:',
  '0:80',
  '80:65536',
  '8080:80/icmp',
  'icmp:1:1',
  'tcp:80:80/udp',
  'fd00::1:80:80',
  '1.2.3.4:80',
  '8080:80:tcp',
  ' 80:80',
])('--port %j is refused', (text) => {
  expect(() => parsePort(text)).toThrow(/is no port/);
});

test.each([
  ['90', 90],
  ['90s', 90],
  ['15m', 900],
  ['2h', 7_200],
  ['1d', 86_400],
])('%s is %d seconds', (text, seconds) => {
  expect(parseSeconds(text)).toBe(seconds);
});

test.each([
  ['1', 1],
  ['500k', 500_000],
  ['100M', 100_000_000],
  ['2.5G', 2_500_000_000],
])('%s is %d bits per second', (text, rate) => {
  expect(parseBitsPerSecond(text)).toBe(rate);
});

test.each(['0', '1.0001', '1K', '1.2345k', '99999999999999G', '-1', 'M'])(
  '%s is no rate',
  (text) => {
    expect(() => parseBitsPerSecond(text)).toThrow(/is no rate/);
  },
);

test.each([
  [0, '0s'],
  [119, '119s'],
  [120, '2m'],
  [7_199, '119m'],
  [7_200, '2h'],
  [172_800, '2d'],
  [-5, '0s'],
])('%d seconds ago is %s', (seconds, text) => {
  const now = Date.parse('2026-01-02T03:04:05Z');
  expect(age(new Date(now - seconds * 1_000).toISOString(), now)).toBe(text);
});
