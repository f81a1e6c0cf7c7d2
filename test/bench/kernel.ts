import { setTimeout as sleep } from 'node:timers/promises';
import { MacAddress } from '#protocol/address.ts';
import { parseNetwork } from '#protocol/network.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import { Firewall } from '#agent/host/firewall/firewall.ts';
import { Kernel } from '#agent/host/kernel.ts';
import type { NetworkType } from '#agent/host/networks/network-type.ts';
import { Removal } from '#agent/host/networks/removal.ts';
import { type BridgePort, makeTap } from '#agent/host/networks/tap.ts';
import { networkTypesOver } from '#agent/host/networks/types.ts';
import { makeVeth } from '#agent/host/networks/veth.ts';
import { DEFAULT_IFNAME, RequestedNamespace } from '#agent/host/networks/workload.ts';
import { deviceTag } from '#agent/host/ownership.ts';
import { createLog } from '#agent/log.ts';
import { type Figure, inTurns, type Table } from './figures.ts';
import { Floor, type FloorTime } from './floor.ts';
import { namespaces } from './rivals.ts';
import type { Sizes } from './sizes.ts';

const DOOMED_GROUP = 79;
/** Both sides make twice as many devices as the turns of whole attaches: each of them is short. */
const PER_ATTACH = 2;
const WARM_UP_TURNS = 40;
/** Containers announce their addresses some time after their attach. */
const ANNOUNCED_MS = 60;
const MTU = 1_500;
const BRIDGE_MAC = '02:00:00:00:4b:01';
const C_TAP = 'C, TAP';
const AGENT_TAP = 'agent, TAP';
const WHOLE_TAP = 'agent, TAP, whole stretch';
const C_VETH = 'C, veth pair';
const AGENT_VETH = 'agent, veth pair';
const WHOLE_VETH = 'agent, veth pair, whole stretch';
/** With the port filter, as networks have it by default. */
const NETWORK = parseNetwork({ network: 'k0', subnet: '10.71.0.0/16', gateway: '10.71.0.1' });
const NO_RECORDS = { namesDevice: () => false, get: () => undefined, values: () => [] };

interface Rival {
  readonly name: string;
  /** Makes one device for each place, one right after the other; milliseconds of each. */
  readonly make: () => Promise<number[]>;
  readonly clear: () => Promise<void>;
}

/** What the agent's own kernel operations take, beside the same messages from C. No servers, no agent process. */
export async function benchKernel({ rounds, block }: Sizes): Promise<Table[]> {
  const places = block * PER_ATTACH;
  await using floor = new Floor();
  using agent = new AgentKernel();
  const inside = namespaces(places);
  const c = { clear: () => floor.clear() };
  const own = { clear: () => agent.clear() };
  const announcing = {
    clear: async () => {
      await sleep(ANNOUNCED_MS);
      await agent.clear();
    },
  };
  // C gets all its orders at once: a program that waits for each of them would begin each with cold caches.
  const byC = async (make: (path: string) => Promise<FloorTime>): Promise<number[]> => {
    const times = await Promise.all(inside.map(make));
    return times.map(({ stretchMs }) => stretchMs);
  };
  const byAgent = async (make: (path: string) => number): Promise<number[]> => inside.map(make);
  const rivals: Rival[] = [
    { ...c, name: C_TAP, make: () => byC(() => floor.tap()) },
    { ...own, name: AGENT_TAP, make: () => byAgent(() => agent.tap()) },
    { ...own, name: WHOLE_TAP, make: () => byAgent(() => agent.attach('vm')) },
    { ...c, name: C_VETH, make: () => byC((path) => floor.veth(path)) },
    { ...announcing, name: AGENT_VETH, make: () => byAgent((path) => agent.veth(path)) },
    {
      ...announcing,
      name: WHOLE_VETH,
      make: () => byAgent((path) => agent.attach('container', path)),
    },
  ];
  const turn = async (rival: Rival, note: (what: string, ms: number) => void): Promise<void> => {
    for (const ms of await rival.make()) note('make', ms);
    await rival.clear();
  };
  await inTurns(rivals, Math.min(WARM_UP_TURNS, rounds), turn);
  const turns = await inTurns(rivals, rounds, turn);
  const ratio = (name: string, base: string, bound?: number): Figure => ({
    name: `${name} / ${base}`,
    unit: 'ratio',
    values: turns.ratios('make', name, base),
    ...(bound !== undefined && { bound }),
  });
  return [
    {
      name: 'kernel',
      title: 'The kernel phase',
      how:
        `What an agent asks of the kernel for one device, in a process without servers; ${rounds} rounds of ${places} ` +
        'devices each, one right after the other. C sends the same messages. The whole stretch is everything between the ' +
        'lease and the answer, on a network with the port filter: a look at the bridge, elements of nftables, settings ' +
        'of the port and its forwarding entry, which C does not do.',
      decisive: [
        ratio(AGENT_TAP, C_TAP, 1.25),
        ratio(AGENT_VETH, C_VETH, 1.25),
        ratio(WHOLE_TAP, C_TAP),
        ratio(WHOLE_VETH, C_VETH),
      ],
      shown: rivals.map(({ name }) => ({ name, unit: 'ms', values: turns.values('make', name) })),
    },
  ];
}

/** The parts of an agent that make devices, without the rest of it. */
class AgentKernel implements Disposable {
  readonly #kernel = new Kernel();
  readonly #firewall: Firewall;
  readonly #type: NetworkType;
  readonly #port: BridgePort;
  readonly #made: { readonly index: number; readonly id: string }[] = [];
  #generation = 0;

  constructor() {
    const log = createLog('silent', 'bench');
    const { links } = this.#kernel;
    this.#firewall = new Firewall({ log, table: 'bench' });
    this.#firewall.start();
    const types = networkTypesOver({
      host: 'bench',
      kernel: this.#kernel,
      removal: new Removal(this.#kernel, log),
      journal: NO_RECORDS,
      firewall: this.#firewall,
      log,
    });
    const type = types[NETWORK.type];
    if (type === undefined) throw new Error(`no network type ${NETWORK.type}`);
    this.#type = type;
    const bridge = links.createBridge({ name: 'bare0', mac: MacAddress.parse(BRIDGE_MAC) });
    links.set(bridge, { up: true });
    this.#port = { bridge: bridge.name, master: bridge.index, beforeUp: () => {} };
  }

  /** Milliseconds of a TAP alone. */
  tap(): number {
    const lease = this.#lease('vm');
    const order = { tap: undefined, port: this.#port, lease, tag: deviceTag(lease), mtu: MTU };
    const name = `bare-${lease.id}`;
    return this.#timed(lease, () =>
      makeTap(this.#kernel, { ...order, name }, new DisposableStack()),
    );
  }

  /** Milliseconds of a veth pair and its end inside; the namespace is open before. */
  veth(netns: string): number {
    const lease = this.#lease('container');
    using namespace = new RequestedNamespace(netns);
    namespace.enter(DEFAULT_IFNAME);
    const order = { port: this.#port, lease, tag: deviceTag(lease), mtu: MTU, network: NETWORK };
    const names = { name: `bare-${lease.id}`, peerName: DEFAULT_IFNAME };
    return this.#timed(lease, () =>
      makeVeth(this.#kernel, { ...order, ...names, namespace }, new DisposableStack()),
    );
  }

  /** Milliseconds of the whole stretch: what comes before it the agent does while it waits for the lease. */
  attach(kind: Lease['kind'], netns?: string): number {
    const lease = this.#lease(kind);
    const { id, workload, network } = lease;
    const request = { id, workload, kind, network, ...(netns !== undefined && { netns }) };
    using checked = this.#type.check(request, NETWORK);
    checked.prepare();
    return this.#timed(lease, () => checked.attach(lease, new DisposableStack()).device);
  }

  /** Removes all devices that were made; bridges stay. */
  async clear(): Promise<void> {
    const { links } = this.#kernel;
    const made = this.#made.splice(0);
    for (const { index } of made) links.set(index, { group: DOOMED_GROUP });
    await links.deleteGroupAsync(DOOMED_GROUP);
    for (const { id } of made) this.#firewall.remove(`port:${id}`);
  }

  [Symbol.dispose](): void {
    this.#firewall[Symbol.dispose]();
    this.#kernel[Symbol.dispose]();
  }

  #timed({ id }: Lease, make: () => { readonly ifindex: number } | null): number {
    const started = performance.now();
    const device = make();
    const ms = performance.now() - started;
    if (device !== null) this.#made.push({ index: device.ifindex, id });
    return ms;
  }

  #lease(kind: Lease['kind']): Lease {
    this.#generation += 1;
    const n = this.#generation;
    const id = `k${n}`;
    const octets = [n >> 8, n].map((part) => (part & 255).toString(16).padStart(2, '0'));
    return {
      ...{ id, kind, network: NETWORK.network, workload: id, generation: n },
      ...{ host: 'bench', bootId: 'bench', grantedAt: '2026-01-01T00:00:00Z' },
      mac: `02:4b:00:00:${octets.join(':')}`,
      addresses: [`10.71.${1 + ((n >> 8) % 250)}.${n & 255}/16`],
    };
  }
}
