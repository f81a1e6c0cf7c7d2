import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { until } from '../../support/agent.ts';
import { dig } from '../../support/asking.ts';
import { attachBox } from '../../support/boxes.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { dyingWithParent, requireTool } from '../../support/tools.ts';

// Many at once: clients of one network, by perfdhcp, and networks of one host.

const CLIENTS = 500;
const NETWORKS = 50;
const MANY = {
  network: 'gm0',
  subnet: '10.70.0.0/21',
  gateway: '10.70.0.1',
  // perfdhcp asks as a relay does, in the name of all its clients.
  filter: false,
  dhcp: true,
  dns: { names: true },
  reuseDelaySeconds: 0,
};
const small = (number: number) => ({
  network: `gm-${number}`,
  subnet: `10.71.${number}.0/24`,
  gateway: `10.71.${number}.1`,
  dhcp: true,
  dns: { names: true },
});
const numbers = Array.from({ length: NETWORKS }, (_, number) => number);

let stack: Stack;
beforeAll(async () => {
  stack = await startStack({ networks: [MANY, ...numbers.map(small)] });
});
afterAll(() => stack[Symbol.asyncDispose]());

const fileOf = (network: string, name: string): string =>
  readFileSync(join(stack.agent.runtimeDir, 'dnsmasq', network, name), 'utf8');
const leases = (): string[] =>
  fileOf('gm0', 'state/leases')
    .trim()
    .split('\n')
    .filter((line) => line !== '');

/** Runs what is to be done for each of many, some at a time. */
async function forAll<Item>(items: readonly Item[], act: (item: Item) => Promise<unknown>) {
  for (let at = 0; at < items.length; at += 25) {
    await Promise.all(items.slice(at, at + 25).map(act));
  }
}

async function addressOfBox(id: string, network: string): Promise<string> {
  const attachment = await attachBox(stack, id, { network, hostname: 'box' });
  return attachment.addresses[0]?.address.replace(/\/.*/, '') ?? '';
}

test('five hundred clients get their leases, none is lost, and all end with their attachments', async () => {
  const clients = Array.from({ length: CLIENTS }, (_, number) => `c${number}`);
  await addressOfBox('perf', 'gm0');
  await forAll(clients, (id) => {
    const number = Number(id.slice(1));
    const last = [number >> 8, number & 0xff].map((byte) => byte.toString(16).padStart(2, '0'));
    return stack.client.attach(stack.host, {
      id,
      workload: `vm-${id}`,
      kind: 'vm',
      network: 'gm0',
      hostname: id,
      mac: `02:00:00:00:${last.join(':')}`,
    });
  });
  await until('dnsmasq is told of all', () => {
    return readdirSync(join(stack.agent.runtimeDir, 'dnsmasq/gm0/hosts')).length === CLIENTS + 1;
  });
  await until('named', () => dig('perf', '10.70.0.1', `c${CLIENTS - 1}.gm0.internal`) !== '');
  const [program, args] = dyingWithParent([
    ...[requireTool('ip'), 'netns', 'exec', 'perf', requireTool('perfdhcp'), '-4', '-l', 'eth0'],
    // All at once, and again after a while whoever has no answer, as clients do.
    ...['--scenario', 'avalanche', '-R', String(CLIENTS), '-b', 'mac=02:00:00:00:00:00'],
    '10.70.0.1',
  ]);
  const perfdhcp = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  perfdhcp.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()));
  await once(perfdhcp, 'close');
  const leased = leases();
  expect({ leased: leased.length, said }).toEqual({ leased: CLIENTS, said });
  for (const line of leased) {
    const [, mac = '', address, name = ''] = line.split(' ');
    const { attachment } = await stack.client.get(stack.host, { id: name });
    expect([mac, `${address}/21`]).toEqual([attachment.mac, attachment.addresses[0]?.address]);
  }
  await forAll(clients, (id) => stack.client.detach(stack.host, { id }, { timeoutMs: 100_000 }));
  await until('all leases have ended', () => leases().length === 0, 120_000);
  await until('no name is left', () => dig('perf', '10.70.0.1', 'c0.gm0.internal') === '');
  expect(readdirSync(join(stack.agent.runtimeDir, 'dnsmasq/gm0/hosts'))).toEqual(['perf']);
});

test('fifty networks serve side by side, each its own', async () => {
  const addresses = new Map<number, string>();
  for (const number of numbers) {
    addresses.set(number, await addressOfBox(`box${number}`, `gm-${number}`));
  }
  for (const number of numbers) {
    await until(`named in ${number}`, () => {
      const answer = dig(`box${number}`, `10.71.${number}.1`, `box.gm-${number}.internal`);
      return answer === addresses.get(number);
    });
  }
  await until('nothing is wrong', async () => {
    const conditions = (await stack.agent.health())['conditions'] as { name: string }[];
    return conditions.every(({ name }) => name !== 'guests-unserved');
  });
});
