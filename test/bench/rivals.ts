import { execFileSync } from 'node:child_process';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Namespace } from '#native/namespace.ts';
import type { Stack } from './host.ts';
import { requireTool } from '../support/tools.ts';
import { timed } from './figures.ts';
import type { Floor } from './floor.ts';

/** Where Debian installs the plugins of CNI, and netavark. */
const CNI_FOLDER = '/usr/lib/cni';
export const NETAVARK = '/usr/lib/podman/netavark';

/** Who makes and removes one device after the other. A place is a number below the length of its turn. */
export interface Rival {
  readonly name: string;
  /** Not timed: before each turn. */
  readonly prepare?: () => Promise<void>;
  /** Milliseconds. */
  readonly attach: (place: number) => Promise<number>;
  /** Milliseconds until its command, or its answer, is there. */
  readonly detach?: (place: number) => Promise<number>;
  /** Not timed: after each turn, until nothing of it is left. */
  readonly settle?: () => Promise<void>;
}

/** A turn: so many attaches, then as many detaches. */
export async function turnOf(
  rival: Rival,
  block: number,
  note: (what: string, ms: number) => void,
): Promise<void> {
  await rival.prepare?.();
  for (let place = 0; place < block; place += 1) note('attach', await rival.attach(place));
  if (rival.detach !== undefined) {
    for (let place = 0; place < block; place += 1) note('detach', await rival.detach(place));
  }
  await rival.settle?.();
}

/** Namespaces of one rival, which it uses again in each turn: those that are deleted would disturb the others. */
export function namespaces(count: number): string[] {
  return Array.from({ length: count }, () => {
    madeNamespaces += 1;
    const path = `/run/netns/bench${madeNamespaces}`;
    Namespace.create(path)[Symbol.dispose]();
    return path;
  });
}

let madeNamespaces = 0;
let given = 0;

/** This agent, over NATS, until its answer is there. */
export function agentRival(
  { client, host, gone }: Pick<Stack, 'client' | 'host' | 'gone'>,
  order: { name: string; kind: 'vm' | 'container'; network: string; places: number },
): Rival {
  const { name, kind, network, places } = order;
  const inside = kind === 'container' ? namespaces(places) : [];
  const ids: string[] = [];
  return {
    name,
    prepare: async () => {
      // While the others had their turn, the agent and its connection were idle.
      for (let n = 0; n < 10; n += 1) await client.list(host, { limit: 1 });
    },
    attach: (place) => {
      given += 1;
      const id = `r${given}`;
      ids[place] = id;
      const netns = inside[place];
      const workload = `${kind}-${id}`;
      return timed(() =>
        client.attach(host, { id, workload, kind, network, ...(netns !== undefined && { netns }) }),
      );
    },
    detach: (place) => timed(() => client.detach(host, { id: ids[place] ?? '' })),
    settle: async () => {
      for (const id of ids.splice(0)) await gone(id);
    },
  };
}

export function floorRivals(floor: Floor, places: number): { tap: Rival; veth: Rival } {
  const inside = namespaces(places);
  const settle = (): Promise<void> => floor.clear();
  return {
    tap: { name: 'C, TAP', attach: async () => (await floor.tap()).totalMs, settle },
    veth: {
      name: 'C, veth pair',
      attach: async (place) => (await floor.veth(inside[place] ?? '')).totalMs,
      settle,
    },
  };
}

/** A container's interface by two calls of `ip`: outside and inside of its namespace. */
export function ipBatch(places: number): Rival {
  const ip = requireTool('ip');
  const folder = mkdtempSync(join(tmpdir(), 'volt-bench-ip-'));
  const run = (...words: string[]): void => void execFileSync(ip, words);
  run('link', 'add', 'rival0', 'type', 'bridge');
  run('addr', 'add', '10.80.0.1/24', 'dev', 'rival0');
  run('link', 'set', 'rival0', 'up');
  const names = namespaces(places).map((path) => path.slice('/run/netns/'.length));
  const batch = (name: string, lines: readonly string[]): string => {
    const file = join(folder, name);
    writeFileSync(file, `${lines.join('\n')}\n`);
    return file;
  };
  const outside = names.map((name) =>
    batch(name, [
      `link add ${name}-h type veth peer name eth0 netns ${name}`,
      `link set ${name}-h master rival0 up`,
    ]),
  );
  const inside = batch('inside', [
    'link set lo up',
    'addr add 10.80.0.2/24 dev eth0',
    'link set eth0 up',
    'route add default via 10.80.0.1',
  ]);
  return {
    name: 'ip -batch, twice',
    attach: (place) =>
      timed(() => {
        run('-batch', outside[place] ?? '');
        run('-n', names[place] ?? '', '-batch', inside);
      }),
    detach: (place) => timed(() => run('link', 'delete', `${names[place]}-h`)),
  };
}

/** CNI's bridge plugin, which calls host-local. */
export function cni(places: number): Rival {
  const inside = namespaces(places);
  const config = JSON.stringify({
    cniVersion: '1.0.0',
    name: 'rival',
    type: 'bridge',
    bridge: 'rival1',
    isGateway: true,
    ipam: {
      type: 'host-local',
      dataDir: mkdtempSync(join(tmpdir(), 'volt-bench-cni-')),
      subnet: '10.81.0.0/24',
      routes: [{ dst: '0.0.0.0/0' }],
    },
  });
  const run = (command: string, place: number): void => {
    const env = {
      CNI_COMMAND: command,
      CNI_CONTAINERID: `bench${place}`,
      CNI_NETNS: inside[place],
      CNI_IFNAME: 'eth0',
      CNI_PATH: CNI_FOLDER,
      PATH: process.env['PATH'],
    };
    execFileSync(join(CNI_FOLDER, 'bridge'), { input: config, env });
  };
  return {
    name: 'CNI bridge + host-local',
    attach: (place) => timed(() => run('ADD', place)),
    detach: (place) => timed(() => run('DEL', place)),
  };
}

/**
 * Podman's netavark. It takes the address that it is given: Podman's own ledger is not in this. The network is internal,
 * since on others netavark starts iptables a dozen times; so the container has no default route.
 */
export function netavark(places: number): Rival {
  const inside = namespaces(places);
  const folder = mkdtempSync(join(tmpdir(), 'volt-bench-netavark-'));
  const network = {
    id: 'f'.repeat(64),
    name: 'rival',
    driver: 'bridge',
    network_interface: 'rival2',
    subnets: [{ subnet: '10.82.0.0/24', gateway: '10.82.0.1' }],
    ipv6_enabled: false,
    internal: true,
    dns_enabled: false,
    ipam_options: { driver: 'host-local' },
  };
  const input = (place: number): string =>
    JSON.stringify({
      container_id: `bench${place}`,
      container_name: `bench${place}`,
      networks: { rival: { static_ips: [`10.82.0.${place + 2}`], interface_name: 'eth0' } },
      network_info: { rival: network },
    });
  const run = (command: string, place: number): void => {
    const words = ['--config', folder, command, inside[place] ?? ''];
    execFileSync(NETAVARK, words, { input: input(place), stdio: ['pipe', 'ignore', 'pipe'] });
  };
  return {
    name: 'netavark, internal',
    attach: (place) => timed(() => run('setup', place)),
    detach: (place) => timed(() => run('teardown', place)),
  };
}
