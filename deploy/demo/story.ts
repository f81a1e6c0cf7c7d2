import { existsSync, readdirSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Links } from '#native/link.ts';
import { Namespace } from '#native/namespace.ts';
import { NetlinkSocket } from '#native/netlink.ts';
import { claimTap } from './claim.ts';
import { runGuest } from './guest.ts';
import type { Stage } from './stage.ts';
import { TapGuest } from './tap-guest.ts';
import { type Span, waterfall } from '#protocol/waterfall.ts';
import { RUNTIME_DIR, type World } from './world.ts';

/** The network that the documentation shows. */
const VOLT0 = `{
  "network": "volt0",
  "subnet": "10.42.0.0/24",
  "gateway": "10.42.0.1",
  "pool": { "start": "10.42.0.2", "end": "10.42.0.254" },
  "reservations": { "vm-web": "10.42.0.10", "container-db": "10.42.0.20" }
}`;
const GATEWAY = '10.42.0.1';
const VM_ADDRESS = '10.42.0.10';
const CONTAINER_ADDRESS = '10.42.0.20';
const NETNS = '/run/netns/db';
const PING_MS = 5_000;
const EVENTS_MS = 5_000;
const GONE_MS = 5_000;
const TRACE_WIDTH = { least: 90, most: 130 };

type Traced = Awaited<ReturnType<World['traced']>>;

/** What the demo tells, a method a step. Every step checks what it shows and throws where it is not so. */
export class Story {
  readonly #stage: Stage;
  readonly #world: World;
  readonly #realGuest: boolean;
  readonly #width: number;
  readonly #events: string[] = [];

  constructor(options: { stage: Stage; world: World; realGuest: boolean; width: number }) {
    this.#stage = options.stage;
    this.#world = options.world;
    this.#realGuest = options.realGuest;
    this.#width = Math.min(TRACE_WIDTH.most, Math.max(TRACE_WIDTH.least, options.width));
  }

  async tell(): Promise<void> {
    await this.#startServers();
    await this.#putNetwork();
    const container = await this.#attachContainer();
    const vm = await this.#attachVm();
    await this.#showAddresses();
    await this.#ping();
    await this.#showEventsAndTraces(container, vm);
    await this.#detach();
    await this.#showNothingLeft();
  }

  async #startServers(): Promise<void> {
    this.#stage.step('A host: NATS, Redis and the agent, in namespaces of their own');
    using route = NetlinkSocket.open();
    const links = new Links(route);
    const lo = links.get('lo');
    if (lo === null) throw new Error('there is no loopback device');
    links.set(lo.index, { up: true });
    await this.#timed('nats-server with JetStream on 127.0.0.1:4222', () =>
      this.#world.startNats(),
    );
    await this.#timed('redis-server on 127.0.0.1:6379', () => this.#world.startRedis());
    await this.#timed('volt-network-agent, which exports its traces to the demo', () =>
      this.#world.startAgent(),
    );
    this.#stage.command('voltnet status');
    this.#stage.output(await this.#world.voltnet(['status']));
    await this.#world.watch((line) => this.#events.push(line));
  }

  async #putNetwork(): Promise<void> {
    this.#stage.step('A network, as operators write it');
    this.#stage.command('cat volt0.json');
    this.#stage.output(VOLT0);
    this.#stage.command('voltnet network put volt0.json');
    this.#stage.output(await this.#world.voltnet(['network', 'put', '-'], { input: VOLT0 }));
  }

  async #attachContainer(): Promise<Traced> {
    this.#stage.step('A container gets its network: one request');
    Namespace.create(NETNS)[Symbol.dispose]();
    this.#stage.fact(`its network namespace is ${NETNS}`);
    return this.#attach(
      'orchestrator: start container-db',
      `--id db --workload container-db --kind container --network volt0 --netns ${NETNS}`,
    );
  }

  async #attachVm(): Promise<Traced> {
    this.#stage.step('A virtual machine gets its network: the same request, another kind');
    return this.#attach(
      'orchestrator: start vm-web',
      '--id web --workload vm-web --kind vm --network volt0',
    );
  }

  async #attach(span: string, flags: string): Promise<Traced> {
    this.#stage.command(`voltnet attach ${flags}`);
    const words = ['attach', ...flags.split(' ')];
    const traced = await this.#world.traced(span, words, 'publish attached');
    this.#stage.output(traced.output);
    return traced;
  }

  async #showAddresses(): Promise<void> {
    this.#stage.step('What the kernel has, as ip tells it');
    await this.#show(['ip', '-br', 'link'], ['volt0', 'tap-web', 'veth-db-h']);
    await this.#show(['ip', '-br', '-4', 'addr', 'show', 'dev', 'volt0'], [GATEWAY]);
    await this.#show(['ip', '-n', 'db', '-br', '-4', 'addr'], [`${CONTAINER_ADDRESS}/24`]);
    await this.#show(['ip', '-n', 'db', 'route'], [`default via ${GATEWAY} dev eth0`]);
  }

  async #ping(): Promise<void> {
    this.#stage.step('They talk to each other');
    if (this.#realGuest) {
      await runGuest({
        stage: this.#stage,
        world: this.#world,
        id: 'web',
        address: `${VM_ADDRESS}/24`,
        gateway: GATEWAY,
        ping: CONTAINER_ADDRESS,
        whileItRuns: () => this.#pingFromContainer(),
      });
      return;
    }
    const { descriptor, name, mac, vnetHdrSize } = await claimTap('web');
    using guest = new TapGuest({ descriptor, vnetHdrSize, mac, address: VM_ADDRESS });
    this.#stage.fact(
      `the demo claimed ${name} over the agent's socket and is the VM ${VM_ADDRESS}`,
    );
    await this.#pingFromContainer();
    for (const address of [CONTAINER_ADDRESS, GATEWAY]) {
      const ms = await guest.ping(address, PING_MS);
      this.#stage.fact(`VM -> ${address}: answered in ${ms.toFixed(2)} ms`);
    }
    this.#stage.fact(`the VM answered ${guest.answered} pings`);
  }

  async #pingFromContainer(): Promise<void> {
    for (const address of [VM_ADDRESS, GATEWAY]) {
      const words = [
        'ip',
        'netns',
        'exec',
        'db',
        'ping',
        '-c',
        '2',
        '-i',
        '0.2',
        '-W',
        '5',
        address,
      ];
      await this.#show(words, [' 0% packet loss']);
    }
  }

  async #showEventsAndTraces(container: Traced, vm: Traced): Promise<void> {
    this.#stage.step('What everybody else could see: events, and one trace per request');
    await this.#showEvents('attached', 2);
    for (const { spans } of [container, vm]) {
      this.#stage.fact('');
      this.#showTrace(await spans());
    }
  }

  #showTrace(spans: readonly Span[]): void {
    this.#stage.fact(
      `trace ${spans[0]?.traceId}: ${spans.length} spans; the time axis is the request's`,
    );
    for (const row of waterfall(spans, { within: 'attach', width: this.#width })) {
      this.#stage.fact(row);
    }
  }

  async #detach(): Promise<void> {
    this.#stage.step('Both go away');
    this.#events.length = 0;
    for (const id of ['web', 'db']) {
      this.#stage.command(`voltnet detach ${id}`);
      this.#stage.output(await this.#world.voltnet(['detach', id]));
    }
    await this.#showEvents('detached', 2);
  }

  async #showNothingLeft(): Promise<void> {
    this.#stage.step('Nothing is left');
    const end = performance.now() + GONE_MS;
    while (
      JSON.parse(await this.#world.voltnet(['network', 'get', 'volt0', '--json'])).usage.used > 0
    ) {
      if (performance.now() > end) throw new Error('leases are left');
    }
    await this.#show(['ip', '-br', 'link'], ['volt0'], ['tap-', 'veth-', 'vdel']);
    await this.#show(['ip', '-n', 'db', '-br', 'link'], ['lo'], ['eth0']);
    this.#stage.command('voltnet list');
    const list = await this.#world.voltnet(['list']);
    this.#stage.output(list);
    if (list.trimEnd().includes('\n')) throw new Error('attachments are left');
    this.#stage.command('voltnet check');
    this.#stage.output(await this.#world.voltnet(['check']));
    const records = `${RUNTIME_DIR}/attachments`;
    const left = existsSync(records) ? readdirSync(records) : [];
    if (left.length > 0) throw new Error(`records are left: ${left.join(', ')}`);
    this.#stage.fact(`no record in ${records}; the bridge stays for whoever is attached next`);
    Namespace.remove(NETNS);
    await this.#timed('the agent has ended on SIGTERM', () => this.#world.stopAgent());
  }

  async #showEvents(type: string, count: number): Promise<void> {
    const end = performance.now() + EVENTS_MS;
    while (this.#events.filter((line) => line.includes(` ${type} `)).length < count) {
      if (performance.now() > end) throw new Error(`${count} events "${type}" did not come`);
      await sleep(20);
    }
    this.#stage.command('voltnet watch');
    this.#stage.output(this.#events.join('\n'));
  }

  /** Runs and shows a command whose output must have some words, and not others. */
  async #show(
    words: readonly string[],
    has: readonly string[],
    hasNot: readonly string[] = [],
  ): Promise<void> {
    this.#stage.command(words.join(' '));
    const output = await this.#world.run(words);
    this.#stage.output(output);
    const missing = has.filter((word) => !output.includes(word));
    if (missing.length > 0) throw new Error(`${words.join(' ')}: no ${missing.join(', ')}`);
    const left = hasNot.filter((word) => output.includes(word));
    if (left.length > 0) throw new Error(`${words.join(' ')}: still has ${left.join(', ')}`);
  }

  async #timed(what: string, work: () => Promise<void>): Promise<void> {
    const started = performance.now();
    await work();
    this.#stage.fact(`${what} (${Math.round(performance.now() - started)} ms)`);
  }
}
