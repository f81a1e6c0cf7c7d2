import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { bridge, filesIn, ip, nftElements } from './kernel.ts';
import type { Stack } from './stack.ts';
import { requireTool } from './tools.ts';

// What a host has of attachments, as nobody of ours reads it: iproute2, nft, redis-cli, and the files of the records.

/** Generations by attachment id, as each sees them; `filtered` are devices under the port filter. */
export interface Views {
  readonly kernel: ReadonlyMap<string, number>;
  readonly records: ReadonlyMap<string, number>;
  readonly leases: ReadonlyMap<string, number>;
  readonly devices: ReadonlyMap<string, string>;
  readonly filtered: ReadonlySet<string>;
}

/** Of the devices in the host's own namespace; what is tagged there more than once is in `kernel` with -1. */
export function viewsOf({ agent, redis }: Pick<Stack, 'agent' | 'redis'>): Views {
  const kernel = new Map<string, number>();
  const devices = new Map<string, string>();
  for (const { ifalias, ifname, linkinfo } of ip('-d', 'link')) {
    const tag = /^volt:(.+)#(\d+)$/.exec(typeof ifalias === 'string' ? ifalias : '');
    const { info_kind: kind } = (linkinfo ?? {}) as { info_kind?: string };
    // The IFB of a device carries the same tag.
    if (tag === null || kind === 'ifb') continue;
    const [, id = '', generation] = tag;
    kernel.set(id, kernel.has(id) ? -1 : Number(generation));
    devices.set(id, String(ifname));
  }
  const folder = join(agent.runtimeDir, 'attachments');
  const records = new Map(
    filesIn(folder)
      .filter((file) => file.endsWith('.json') && !file.includes('/'))
      .map((file) => {
        const record = JSON.parse(readFileSync(join(folder, file), 'utf8')) as {
          generation?: number;
        };
        return [basename(file, '.json'), record.generation ?? 0] as const;
      }),
  );
  const filtered = nftElements().flatMap((element) => {
    const device = /^bridge \S+ ports "(.*)"$/.exec(element)?.[1];
    return device === undefined ? [] : [device];
  });
  return { kernel, devices, records, leases: leasesIn(redis.port), filtered: new Set(filtered) };
}

function leasesIn(port: number): Map<string, number> {
  const cli = (...args: string[]): string[] =>
    execFileSync(requireTool('redis-cli'), ['-p', String(port), '--raw', ...args], {
      encoding: 'utf8',
    })
      .split('\n')
      .filter((line) => line !== '');
  const leases = new Map<string, number>();
  for (const key of cli('keys', '*:leases')) {
    for (const value of cli('hvals', key)) {
      if (!value.startsWith('{')) continue;
      const { id, generation } = JSON.parse(value) as { id: string; generation: string };
      leases.set(id, Number(generation));
    }
  }
  return leases;
}

/** What one has and another has not, in words; empty where all four agree. */
export function disagreements({ kernel, devices, records, leases, filtered }: Views): string[] {
  const ids = new Set([...kernel.keys(), ...records.keys(), ...leases.keys()]);
  const told = [...ids].flatMap((id) => {
    const [device, record, lease] = [kernel.get(id), records.get(id), leases.get(id)];
    const generations = `device ${device}, record ${record}, lease ${lease}`;
    if (device !== record || record !== lease) return [`${id}: ${generations}`];
    return filtered.has(devices.get(id) ?? '') ? [] : [`${id}: its device is not filtered`];
  });
  const names = new Set(devices.values());
  return [
    ...told,
    ...[...filtered].filter((name) => !names.has(name)).map((name) => `filter of ${name}`),
  ];
}

/** Without what changes by itself: timers of a bridge, and an address that is being looked for. */
const settled = (value: unknown): unknown =>
  JSON.parse(
    JSON.stringify(value, (key, one: unknown) =>
      key.endsWith('_timer') || key === 'tentative' ? undefined : one,
    ),
  );

const run = (tool: string, ...args: string[]): string =>
  execFileSync(requireTool(tool), args, { encoding: 'utf8' });

/** Things of others on this host: a bridge, a TAP on it, a pair, rules, a queue and a route. */
export interface Foreign extends Disposable {
  /** All of it, as iproute2 and nft show it. */
  look(): unknown;
  /** Again, after somebody has flushed all rules. */
  makeRules(): void;
}

const makeRules = (): void => {
  const rule = 'inet foreign c counter drop';
  run('nft', `add table inet foreign; add chain inet foreign c; add rule ${rule}`);
};

export function makeForeign(): Foreign {
  run('ip', 'link', 'add', 'foreign0', 'type', 'bridge');
  run('ip', 'addr', 'add', '192.0.2.1/24', 'dev', 'foreign0');
  run('ip', 'link', 'set', 'foreign0', 'up', 'alias', 'volt:looks-like-one');
  run('ip', 'tuntap', 'add', 'tap-foreign', 'mode', 'tap');
  run('ip', 'link', 'set', 'tap-foreign', 'master', 'foreign0', 'up');
  run('bridge', 'link', 'set', 'dev', 'tap-foreign', 'isolated', 'on', 'learning', 'off');
  run('ip', 'link', 'add', 'veth-foreign', 'type', 'veth', 'peer', 'name', 'veth-other');
  run(
    'tc',
    'qdisc',
    'add',
    'dev',
    'veth-foreign',
    'root',
    'tbf',
    'rate',
    '8mbit',
    'burst',
    '4k',
    'limit',
    '9k',
  );
  run('ip', 'route', 'add', '198.51.100.0/24', 'via', '192.0.2.9');
  makeRules();
  return {
    look: () =>
      settled([
        ...['foreign0', 'tap-foreign', 'veth-foreign', 'veth-other'].map((name) => {
          const [row] = ip('-d', 'addr', 'show', 'dev', name);
          return row;
        }),
        bridge('-d', 'link', 'show', 'dev', 'tap-foreign'),
        run('tc', 'qdisc', 'show', 'dev', 'veth-foreign'),
        run('ip', 'route', 'show', '198.51.100.0/24'),
        run('nft', 'list', 'table', 'inet', 'foreign'),
      ]),
    makeRules,
    [Symbol.dispose]: () => {
      run('nft', 'delete table inet foreign');
      for (const name of ['veth-foreign', 'tap-foreign', 'foreign0'])
        run('ip', 'link', 'delete', name);
    },
  };
}
