import { setTimeout as sleep } from 'node:timers/promises';
import { parseNetwork } from '#protocol/network.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import { Firewall } from '#agent/host/firewall/firewall.ts';
import { Kernel } from '#agent/host/kernel.ts';
import { Removal } from '#agent/host/networks/removal.ts';
import { networkTypesOver } from '#agent/host/networks/types.ts';
import { createLog } from '#agent/log.ts';
import { type Figure, inTurns, type Table } from './figures.ts';
import { Floor } from './floor.ts';
import { namespaces } from './rivals.ts';
import type { Sizes } from './sizes.ts';

const DOOMED_GROUP = 79;
/** Both sides make twice as many devices as the turns of whole attaches: each of them is short. */
const PER_ATTACH = 2;
const WARM_UP_TURNS = 40;
/** Containers announce their addresses some time after their attach. */
const ANNOUNCED_MS = 60;
const NO_RECORDS = { namesDevice: () => false, get: () => undefined, values: () => [] };

interface Rival {
  readonly name: string;
  readonly make: (place: number) => Promise<number> | number;
  readonly clear: () => Promise<void>;
}

/** What the agent's own kernel operations take, beside the same messages from C. No servers, no agent. */
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
  const rivals: Rival[] = [
    { ...c, name: 'C, TAP', make: async () => (await floor.tap()).stretchMs },
    { ...own, name: 'agent, TAP', make: () => agent.attach('vm', 'plain') },
    { ...own, name: 'agent, TAP, port filter', make: () => agent.attach('vm', 'filtered') },
    {
      ...c,
      name: 'C, veth pair',
      make: async (place) => (await floor.veth(inside[place] ?? '')).stretchMs,
    },
    {
      ...announcing,
      name: 'agent, veth pair',
      make: (place) => agent.attach('container', 'plain', inside[place]),
    },
    {
      ...announcing,
      name: 'agent, veth pair, port filter',
      make: (place) => agent.attach('container', 'filtered', inside[place]),
    },
  ];
  const turn = async (rival: Rival, note: (what: string, ms: number) => void): Promise<void> => {
    for (let place = 0; place < places; place += 1) note('make', await rival.make(place));
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
        `The synchronous stretch of an attach, from the lease to the device that is up, as the agent runs it, in a ` +
        `process without servers; ${rounds} rounds of ${places} devices each. C sends the same messages. On a network ` +
        'with the port filter the agent also writes the elements of nftables, the settings of the port and its ' +
        'forwarding entry, which C does not: those rows are shown for what the filter adds.',
      decisive: [
        ratio('agent, TAP', 'C, TAP', 1.25),
        ratio('agent, veth pair', 'C, veth pair', 1.25),
        ratio('agent, TAP, port filter', 'C, TAP'),
        ratio('agent, veth pair, port filter', 'C, veth pair'),
      ],
      shown: rivals.map(({ name }) => ({ name, unit: 'ms', values: turns.values('make', name) })),
    },
  ];
}

/** The parts of an agent that make devices, without the rest of it. */
class AgentKernel implements Disposable {
  readonly #kernel = new Kernel();
  readonly #firewall: Firewall;
  readonly #types: ReturnType<typeof networkTypesOver>;
  readonly #networks = {
    plain: networkOf('plain', 71, false),
    filtered: networkOf('filtered', 72, true),
  };
  readonly #made: { readonly index: number; readonly id: string }[] = [];
  #generation = 0;

  constructor() {
    const log = createLog('silent', 'bench');
    this.#firewall = new Firewall({ log, table: 'bench' });
    this.#firewall.start();
    this.#types = networkTypesOver({
      host: 'bench',
      kernel: this.#kernel,
      removal: new Removal(this.#kernel, log),
      journal: NO_RECORDS,
      firewall: this.#firewall,
      log,
    });
  }

  /** Milliseconds of the stretch: what comes before it the agent does while it waits for the lease. */
  attach(kind: 'vm' | 'container', which: 'plain' | 'filtered', netns?: string): number {
    this.#generation += 1;
    const id = `k${this.#generation}`;
    const network = this.#networks[which];
    const request = {
      id,
      workload: id,
      kind,
      network: which,
      ...(netns !== undefined && { netns }),
    };
    const type = this.#types[network.type];
    if (type === undefined) throw new Error(`no network type ${network.type}`);
    using checked = type.check(request, network);
    checked.prepare();
    const lease = this.#lease(id, kind, which);
    const started = performance.now();
    const { device } = checked.attach(lease, new DisposableStack());
    const ms = performance.now() - started;
    if (device !== null) this.#made.push({ index: device.ifindex, id });
    return ms;
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

  #lease(id: string, kind: 'vm' | 'container', network: 'plain' | 'filtered'): Lease {
    const n = this.#generation;
    const octets = [n >> 8, n].map((part) => (part & 255).toString(16).padStart(2, '0'));
    const second = network === 'plain' ? 71 : 72;
    return {
      ...{ id, kind, network, workload: id, generation: n, host: 'bench', bootId: 'bench' },
      mac: `02:4b:00:00:${octets.join(':')}`,
      addresses: [`10.${second}.${1 + ((n >> 8) % 250)}.${n & 255}/16`],
      grantedAt: '2026-01-01T00:00:00Z',
    };
  }
}

const networkOf = (network: string, second: number, filter: boolean) =>
  parseNetwork({
    network,
    subnet: `10.${second}.0.0/16`,
    gateway: `10.${second}.0.1`,
    filter,
  });
