import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Attachment } from '#protocol/attachment.ts';
import { until } from './agent.ts';
import { dyingWithParent, requireTool } from './tools.ts';

// The clients that guests have, each inside a namespace: DHCP by ISC's and busybox's, DNS by dig.

type Options = Readonly<Record<string, string>>;

/** What a command says, of both outputs, inside a namespace. */
export function inside(netns: string, command: readonly string[]): string {
  const [name = '', ...words] = command;
  const { stdout, stderr } = spawnSync(
    'ip',
    ['netns', 'exec', netns, requireTool(name), ...words],
    { encoding: 'utf8', timeout: 20_000 },
  );
  return stdout + stderr;
}

/** The options of a lease that ISC's client gets, by name; undefined where nobody answers for some seconds. */
export async function dhclient(
  netns: string,
  family: 4 | 6 = 4,
  device = 'eth0',
): Promise<Options | undefined> {
  await until('the address of the link is settled', () => {
    return !inside(netns, ['ip', '-6', 'address', 'show', 'dev', device]).includes('tentative');
  });
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-dhclient-'));
  const leases = join(folder, 'leases');
  const client = [requireTool('dhclient'), `-${family}`, '-1', '-d', '-lf', leases];
  const ignored = ['-pf', '/dev/null', '-sf', '/bin/true', device];
  const [program, args] = dyingWithParent(['ip', 'netns', 'exec', netns, ...client, ...ignored]);
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  const exited = once(child, 'exit');
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => (said += chunk.toString()));
  for (const end = Date.now() + 8_000; Date.now() < end; await sleep(20)) {
    if (/^(bound to|PRC: Bound to lease|PRC: Renewal event)/m.test(said)) break;
  }
  child.kill();
  await exited;
  const text = existsSync(leases) ? readFileSync(leases, 'utf8') : '';
  rmSync(folder, { recursive: true });
  const options = [...text.matchAll(/(?:option |)([a-z0-9.-]+) ([^;{]+)[;{]/g)];
  // Without an answer there is the client's own DUID at most.
  if (!options.some(([, name = '']) => ['fixed-address', 'iaaddr'].includes(name)))
    return undefined;
  return Object.fromEntries(options.map(([, name = '', value = '']) => [name, value.trim()]));
}

/** The options that busybox's client gets, by its names; undefined where nobody answers. */
export function udhcpc(netns: string, device = 'eth0'): Options | undefined {
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-udhcpc-'));
  const script = join(folder, 'script');
  writeFileSync(script, `#!/bin/sh\nenv >${folder}/$1\n`, { mode: 0o755 });
  const asked = ['hostname', 'mtu', 'search', 'staticroutes', 'ntpsrv', 'domain', 'lease'];
  inside(netns, [
    ...['busybox', 'udhcpc', '-i', device, '-n', '-q', '-f', '-t', '4', '-T', '1', '-s', script],
    ...asked.flatMap((option) => ['-O', option]),
  ]);
  const bound = join(folder, 'bound');
  const text = existsSync(bound) ? readFileSync(bound, 'utf8') : undefined;
  rmSync(folder, { recursive: true });
  return text === undefined
    ? undefined
    : Object.fromEntries(
        text
          .trim()
          .split('\n')
          .map((line) => [line.replace(/=.*/, ''), line.replace(/^[^=]*=/, '')]),
      );
}

/** What a DNS server answers to dig; empty where it does not, or knows nothing. */
export const dig = (netns: string, server: string, ...question: readonly string[]): string =>
  inside(netns, ['dig', '+short', '+time=1', '+tries=2', `@${server}`, ...question])
    .split('\n')
    .filter((line) => !line.startsWith(';;'))
    .join('\n')
    .trim();

/** The addresses of an attachment without their prefix lengths. */
export const bareAddresses = ({ addresses }: Pick<Attachment, 'addresses'>): string[] =>
  addresses.map(({ address }) => address.replace(/\/.*/, ''));
