import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Stack, startStack } from '../../support/stack.ts';

// A minimal Debian has no /etc/protocols and no /etc/services, by which libnftables knows names.

const FILES = ['/etc/protocols', '/etc/services'].filter((file) => existsSync(file));
const network = {
  network: 'volt0',
  type: 'host-only',
  subnet: '10.42.0.0/24',
  gateway: '10.42.0.1',
  ipv6: { subnet: 'fd42::/64', gateway: 'fd42::1' },
  bridge: 'volt0',
};

let stack: Stack;

beforeAll(async () => {
  // In the mount namespace of this test.
  for (const file of FILES) execFileSync('mount', ['--bind', '/dev/null', file]);
  stack = await startStack({ networks: [network] });
});
afterAll(async () => {
  await stack[Symbol.asyncDispose]();
  for (const file of FILES) execFileSync('umount', [file]);
});

test('a VM under the filter, with a port map, is attached, and agrees with its record', async () => {
  const { client, host } = stack;
  const names = execFileSync('sh', ['-c', 'getent protocols udp; getent services http; true']);
  expect(names.toString()).toBe('');
  const ports = [{ protocol: 'udp' as const, hostPort: 5353, port: 53 }];
  const asked = { id: 'one', workload: 'w', kind: 'vm' as const, network: 'volt0', ports };
  const { attachment } = await client.attach(host, asked);
  expect(attachment.filter).toBe('full');
  expect((await client.check(host, {})).differences).toEqual([]);
});
