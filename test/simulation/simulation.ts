// First: what the agent's modules take from Node is this simulation's.
import { type Clock, inside, type Life } from './clock.ts';
import assert from 'node:assert/strict';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { closeSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import { Agent } from '#agent/agent.ts';
import { type Config, loadConfig } from '#agent/config.ts';
import { asRecorded, keepIdentity, readIdentity, writeIdentity } from '#agent/fleet/identity.ts';
import { Slices } from '#agent/schedule/slices.ts';
import { Stretches } from '#agent/schedule/stretches.ts';
import type { SeqpacketServer } from '#native/seqpacket.ts';
import { parseNetwork } from '#protocol/network.ts';
import {
  type BusMistake,
  ModelBus,
  type Operation,
  type Request,
  type StoredEvent,
} from './bus.ts';
import { Clock as ModelClock } from './clock.ts';
import { type KernelMistake, ModelKernel } from './kernel.ts';
import { KEYS, type LedgerMistake, ModelLedger } from './ledger.ts';
import { taggedId } from '#agent/host/ownership.ts';

export interface Mistakes {
  readonly ledger?: LedgerMistake;
  readonly kernel?: KernelMistake;
  readonly bus?: BusMistake;
  /** A host whose machine was given another name goes on under that. */
  readonly host?: 'renamed';
}

interface Host {
  /** Its host id. */
  readonly name: string;
  /** Which machine it is, of two that have one host id. */
  readonly place: string;
  readonly kernel: ModelKernel;
  boot: number;
  lives: number;
  life: Life | undefined;
  agent: Agent | undefined;
  folder: string;
  /** What its machine calls itself. */
  hostName: string;
  /** Another machine has, or had, its host id. */
  cloned: boolean;
  /** An agent of it is ending by itself. */
  stopping: boolean;
  /** A clone that an operator has switched off. */
  scrapped: boolean;
  /** Tells the agent that the ledger is there again. */
  back: () => void;
}

interface Asked {
  readonly host: string;
  readonly operation: Operation;
  readonly request: Request;
}

interface Record {
  readonly id: string;
  readonly state: string;
  readonly generation?: number;
}

const HOSTS = 3;
const IDS = 5;
const FAULTY_MS = 12_000;
const QUIET_MS = 1_200_000;
/** Longer than what reconcile must see twice, and its period. */
const SETTLED_MS = 75_000;
const REQUESTS = 40;
/** Of a network as it is edited: each edit has another one, so that a device tells of which edit it is. */
const FIRST_MTU = 1_400;
const FOLDER = '/dev/shm';
const LOG = pino({ level: 'silent' });
const NETWORK = {
  revision: 1,
  network: parseNetwork({
    network: 'volt0',
    subnet: '10.42.0.0/24',
    gateway: '10.42.0.1',
    reuseDelaySeconds: 2,
    mtu: FIRST_MTU,
  }),
};

/**
 * A fleet in one process: real agents over models of kernel, ledger and NATS, with everything that can go wrong going
 * wrong for a while. One seed is one history. Throws, with the trace, where a promise of the contract is broken.
 */
export async function simulate(seed: number, mistakes: Mistakes = {}): Promise<readonly string[]> {
  const simulation = new Simulation(seed, mistakes);
  try {
    await simulation.run();
    return simulation.clock.trace;
  } catch (error) {
    const trace = simulation.clock.trace.slice(-400).join('\n');
    throw new Error(`seed ${seed}: ${String(error)}\n${trace}\nagain: SEED=${seed}`, {
      cause: error,
    });
  } finally {
    simulation.end();
  }
}

class Simulation {
  readonly clock: Clock;
  readonly #ledger: ModelLedger;
  readonly #bus: ModelBus;
  readonly #mistakes: Mistakes;
  readonly #hosts: Host[];
  readonly #folder = mkdtempSync(join(FOLDER, 'volt-simulation-'));
  readonly #lives: Life[] = [];
  readonly #asked: Asked[] = [];
  readonly #answers = new Map<string, string>();
  readonly #called = new Set<Request>();
  /** The highest generation of which each id had a device. */
  readonly #generations = new Map<string, number>();
  readonly #broken: string[] = [];
  /** Hosts of which the ledger has forgotten, some time, who they are. */
  readonly #forgotten = new Set<string>();
  #edits = 0;
  #killing = 0;
  #calling = 0;

  constructor(seed: number, mistakes: Mistakes) {
    this.clock = new ModelClock(seed);
    this.#ledger = new ModelLedger(this.clock, NETWORK, mistakes.ledger);
    this.#bus = new ModelBus(this.clock, mistakes.bus);
    this.#bus.onConflict = (first, second) => this.#sameEvent(first, second);
    this.#mistakes = mistakes;
    this.#hosts = Array.from({ length: HOSTS }, (_, n) => this.#machine(`h${n + 1}`, `h${n + 1}`));
  }

  async run(): Promise<void> {
    const { chance } = this.clock;
    // Some histories are calm in one way or another.
    const level = (most: number): number => chance.pick([0, most / 4, most]);
    const [killing, refusal] = [level(0.01), level(0.1)];
    this.#ledger.lines.loss = level(0.08);
    this.#bus.loss = level(0.08);
    this.#bus.duplication = level(0.4);
    for (const host of this.#hosts) {
      host.kernel.refusal = refusal;
      this.#start(host);
    }
    this.#killing = killing;
    for (let n = 0; n < REQUESTS; n += 1) this.#at(FAULTY_MS, () => this.#ask());
    for (let n = chance.between(0, 12); n > 0; n -= 1) this.#at(FAULTY_MS, () => this.#mishap());
    await this.#pass(FAULTY_MS);
    await this.#settle();
    this.#checkSettled();
    for (const { host, id } of this.#everything()) this.#job(host, 'detach', { id });
    await this.#settle();
    this.#checkEmpty();
    this.#checkEvents();
  }

  #machine(name: string, place: string): Host {
    const kernel = new ModelKernel(this.clock, this.#mistakes.kernel);
    return {
      ...{ name, place, hostName: name, kernel, boot: 1, lives: 0, folder: '' },
      ...{ cloned: false, stopping: false, scrapped: false },
      ...{ life: undefined, agent: undefined, back: () => {} },
    };
  }

  end(): void {
    for (const life of this.#lives) {
      life.dead = true;
      for (const fd of life.open) closeSync(fd);
    }
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #at(withinMs: number, work: () => void): void {
    this.clock.after(this.clock.chance.between(0, withinMs), this.clock.world, work);
  }

  async #pass(ms: number): Promise<void> {
    const until = this.clock.elapsedMs + ms;
    while (await this.clock.step(until)) this.#checkNow();
  }

  /** Everything works from now on; returns when all that was begun has ended. */
  async #settle(): Promise<void> {
    this.#killing = 0;
    this.#ledger.lines.loss = 0;
    this.#bus.loss = 0;
    for (const host of this.#hosts) {
      host.kernel.refusal = 0;
      this.#reach(host);
    }
    this.#repair();
    const busy = (): boolean =>
      this.#calling > 0 ||
      this.#bus.jobs.some(({ done }) => !done) ||
      this.#hosts.some(({ life }) => life === undefined || life.dead) ||
      this.#hosts.length > HOSTS;
    const end = this.clock.elapsedMs + QUIET_MS;
    while (busy()) {
      assert(this.clock.elapsedMs < end, 'requests that do not end');
      await this.#pass(1_000);
    }
    await this.#pass(SETTLED_MS);
  }

  // What the agents are made of, and what befalls them.

  #start(host: Host): void {
    host.lives += 1;
    host.stopping = false;
    const before = host.folder;
    host.folder = join(this.#folder, `${host.place}-${host.lives}`);
    if (before === '') {
      mkdirSync(join(host.folder, 'run'), { recursive: true });
      mkdirSync(join(host.folder, 'state'));
    } else {
      cpSync(`${before}-left`, host.folder, { recursive: true });
    }
    const life: Life = {
      name: `${host.place}.${host.lives}`,
      clock: this.clock,
      dead: false,
      killPoint: () => {
        if (!life.dead && this.clock.chance.happens(this.#killing)) this.#kill(host, 'midway');
      },
      open: new Set(),
    };
    this.#lives.push(life);
    host.life = life;
    const { ledger, back } = this.#ledger.connect(host.place, life);
    const config = this.#config(host);
    const { machine } = this.#whoOf(host);
    const identity = inside(this.clock.world, () => keepIdentity(config, machine));
    host.back = () => inside(life, back);
    this.clock.note(`${life.name} starts, boot ${host.boot}`);
    inside(life, () => {
      host.agent = new Agent({
        unexpected: { seen: { count: 0 } },
        config,
        log: LOG,
        version: '0',
        machine,
        identity,
        keepYieldsTo: (yieldsTo) => {
          if (!life.dead) writeIdentity(config.stateDir, { ...identity, yieldsTo });
        },
        ledger,
        // So that everything else may come between any two steps of an observation.
        slices: new Slices({ sliceMs: 0 }),
        stretches: new Stretches({ turnMs: 0 }),
        makeBus: (options) => this.#bus.connect(host.place, config.host, life, options),
        openHostNetwork: () => host.kernel.open(life),
        listen: () => ({ close: () => {} }) as SeqpacketServer,
      });
      host.agent.start();
    });
  }

  #config({ hostName, folder }: Host): Config {
    const config = {
      ...loadConfig({ env: {}, flags: { host: hostName } }),
      runtimeDir: join(folder, 'run'),
      stateDir: join(folder, 'state'),
      networksDir: join(folder, 'networks'),
      // Its host id is the name of its machine, as by default.
      hostGiven: false,
    };
    return this.#mistakes.host === 'renamed' ? config : asRecorded(config);
  }

  /** A clone has all of it but the boot. */
  #whoOf({ name, place, boot }: Host) {
    return { machine: { machineId: `machine-${name}`, bootId: `boot-${place}-${boot}` } };
  }

  /** What its files are at this moment is what the next agent finds. */
  #kill(host: Host, how: string): void {
    const { life } = host;
    if (life === undefined || life.dead) return;
    this.clock.note(`${life.name} killed ${how}`);
    life.dead = true;
    this.#leave(host);
    this.clock.after(this.clock.chance.between(10, 2_000), this.clock.world, () => {
      if (!host.scrapped) this.#start(host);
    });
  }

  #leave({ folder }: Host): void {
    inside(this.clock.world, () => cpSync(folder, `${folder}-left`, { recursive: true }));
  }

  #reboot(host: Host): void {
    if (host.life?.dead !== false) return;
    this.#kill(host, 'by a reboot');
    host.boot += 1;
    host.kernel.links.clear();
    rmSync(join(`${host.folder}-left`, 'run'), { recursive: true });
    mkdirSync(join(`${host.folder}-left`, 'run'));
  }

  #restart(host: Host): void {
    const { life, agent } = host;
    if (life === undefined || life.dead || agent === undefined) return;
    this.clock.note(`${life.name} stops`);
    host.stopping = true;
    void inside(life, () => agent.stop()).then(() => {
      if (life.dead) return;
      life.dead = true;
      this.#leave(host);
      this.clock.after(5, this.clock.world, () => {
        if (!host.scrapped) this.#start(host);
      });
    });
  }

  #reach(host: Host): void {
    if (this.#ledger.lines.away.delete(host.place) && host.life?.dead === false) host.back();
    if (this.#bus.away.has(host.place)) this.#bus.back(host.place);
  }

  #mishap(): void {
    const { chance, world } = this.clock;
    const host = chance.pick(this.#hosts);
    const what = chance.pick([
      'kill',
      'kill',
      'restart',
      'reboot',
      'ledger',
      'bus',
      'device',
      'forget',
      'forget',
      'edit',
      'edit',
      'rename',
      'clone',
    ] as const);
    if (what === 'kill') this.#kill(host, 'waiting');
    else if (host.cloned && ['restart', 'reboot', 'ledger'].includes(what)) return;
    else if (what === 'restart') this.#restart(host);
    else if (what === 'reboot') this.#reboot(host);
    else if (what === 'forget') this.#forget(host);
    else if (what === 'edit') this.#edit();
    else if (what === 'rename') host.hostName = `${host.name}-renamed`;
    else if (what === 'clone') this.#clone(host);
    else if (what === 'device') {
      const [index] = host.kernel.links.keys();
      if (index === undefined) return;
      this.clock.note(`${host.name}: somebody touches device ${index}`);
      host.kernel.disturb(index, chance.pick(['delete', 'down']));
    } else {
      this.clock.note(`${host.place}: ${what} away`);
      (what === 'ledger' ? this.#ledger.lines : this.#bus).away.add(host.place);
      this.clock.after(chance.between(100, 8_000), world, () => this.#reach(host));
    }
  }

  /** A key of the ledger vanishes. A network may be put again before an operator looks at all of it. */
  #forget({ name, cloned }: Host): void {
    const { chance, world } = this.clock;
    const key = chance.pick(KEYS);
    // Of two machines the one that speaks first would be the host.
    if (key === 'session' && cloned) return;
    if (key === 'session') this.#forgotten.add(name);
    this.clock.note(`ledger: ${key} vanishes`);
    this.#ledger.lose(key, name);
    if (key === 'network') this.clock.after(chance.between(50, 2_000), world, () => this.#edit());
    this.clock.after(chance.between(200, 6_000), world, () => this.#repair());
  }

  /** Until it is whole: what only the hosts know, they are asked for. */
  #repair(): void {
    const whole = this.#ledger.repair();
    this.clock.note(`ledger: ${whole ? 'repaired' : 'not whole yet'}`);
    if (!whole) this.clock.after(1_000, this.clock.world, () => this.#repair());
  }

  /** Another MTU, and now and then another address that nobody is to have. */
  #edit(): void {
    const { chance } = this.clock;
    this.#edits += 1;
    const mtu = FIRST_MTU + this.#edits;
    const exclude = chance.happens(0.5) ? [`10.42.0.${chance.between(2, 9)}`] : [];
    const outcome = this.#ledger.edit((network) => ({ ...network, mtu, exclude }), NETWORK.network);
    this.clock.note(`edit mtu ${mtu} exclude ${exclude.join()}: ${outcome}`);
  }

  /** Another machine made from one, with or without its state folder; after a while an operator ends it. */
  #clone(host: Host): void {
    // Of a host that is silent for longer than a reboot takes nobody can tell whether a copy of it is its next boot.
    const isHeard = !this.#ledger.lines.away.has(host.place) && host.boot === 1 && !host.stopping;
    if (host.cloned || host.life?.dead !== false || !isHeard) return;
    if (this.#forgotten.has(host.name)) return;
    const { chance, world } = this.clock;
    host.cloned = true;
    const clone = this.#machine(host.name, `${host.place}-clone`);
    clone.cloned = true;
    // And of one that cannot ask.
    for (const { place } of [host, clone]) this.#ledger.lines.sure.add(place);
    const copied = chance.happens(0.7);
    this.clock.note(`${host.place} is cloned, ${copied ? 'state and all' : 'without its state'}`);
    if (copied) {
      clone.folder = join(this.#folder, clone.place);
      const left = `${clone.folder}-left`;
      mkdirSync(join(left, 'run'), { recursive: true });
      inside(world, () =>
        cpSync(join(host.folder, 'state'), join(left, 'state'), { recursive: true }),
      );
    }
    this.#hosts.push(clone);
    this.#start(clone);
    this.clock.after(chance.between(1_000, 40_000), world, () => this.#scrap(clone, host));
  }

  /** The clone is switched off, with all that it has, and the first is settled on. */
  #scrap(clone: Host, host: Host): void {
    const { life, place } = clone;
    this.clock.note(`${place} is scrapped`);
    clone.scrapped = true;
    if (life !== undefined) life.dead = true;
    clone.kernel.links.clear();
    this.#hosts.splice(this.#hosts.indexOf(clone), 1);
    const identity = readIdentity(join(host.folder, 'state'));
    this.#ledger.settle({
      ...this.#whoOf(host).machine,
      host: host.name,
      agentId: identity?.agentId,
    });
  }

  // What is asked of them.

  #ask(): void {
    const { chance } = this.clock;
    const earlier = this.#asked.length > 0 && chance.happens(0.2);
    const asked = earlier ? chance.pick(this.#asked) : this.#something();
    if (!earlier) this.#asked.push(asked);
    // A job would wait for an address that somebody has, for as long as he has it.
    const isCall = asked.request['addresses'] !== undefined || chance.happens(0.5);
    if (!isCall) this.#bus.addJob(asked.host, asked.operation, asked.request);
    else void inside(this.clock.world, () => this.#call(asked));
  }

  #something(): Asked {
    const { chance } = this.clock;
    const number = chance.between(1, IDS);
    const id = `vm-${number}`;
    // Each has a host of its own; now and then it is asked for on another.
    const home = this.#hosts[number % HOSTS]?.name ?? 'h1';
    const host = chance.happens(0.15) ? chance.pick(this.#hosts).name : home;
    const requestId = `r${this.#asked.length}`;
    if (chance.happens(0.4)) return { host, operation: 'detach', request: { id, requestId } };
    const ttl = chance.happens(0.1) ? { leaseTtlSeconds: chance.between(1, 6) } : {};
    // Most of those that somebody asks for by name are held.
    const held = [...this.#ledger.leases.values()].flatMap(({ addresses }) => addresses);
    const asked = chance.pick([...held, `10.42.0.${chance.between(2, 9)}`]).replace('/24', '');
    const named = chance.happens(0.35) ? { addresses: [asked] } : {};
    const request = { id, requestId, workload: id, kind: 'vm', network: 'volt0', ...ttl, ...named };
    return { host, operation: 'attach', request };
  }

  #job(host: string, operation: Operation, request: { readonly id: string }): void {
    const requestId = `last-${host}-${request.id}`;
    this.#bus.addJob(host, operation, { ...request, requestId });
  }

  /** As callers do: the same again, until there is an answer that stays. */
  async #call({ host, operation, request }: Asked): Promise<void> {
    this.#calling += 1;
    this.#called.add(request);
    for (let tries = 1; tries <= 4; tries += 1) {
      const answer = await this.#bus.request(host, operation, request, 3_000);
      const error = answer?.['error'] as { code: string; retryable: boolean } | undefined;
      const { id, requestId } = request;
      const said = answer === undefined ? 'no answer' : (error?.code ?? summary(answer));
      this.clock.note(`answer ${host} ${operation} ${id} ${requestId}: ${said}`);
      if (error?.code === 'INTERNAL') this.#broken.push(`INTERNAL: ${JSON.stringify(answer)}`);
      if (answer === undefined || error?.retryable === true) continue;
      const key = `${host} ${operation} ${requestId}`;
      const first = this.#answers.get(key);
      if (first === undefined) this.#answers.set(key, said);
      else if (first !== said && !this.#isCloned(host))
        this.#broken.push(`${key} was answered ${first}, and now ${said}`);
      break;
    }
    this.#calling -= 1;
  }

  // What must hold.

  /** At every moment. */
  #checkNow(): void {
    const [broken] = this.#broken;
    assert(broken === undefined, broken);
    const addresses = new Map<string, string>();
    const ids = new Map<string, string>();
    const allowed = this.#ledger.allowed;
    for (const host of this.#hosts) {
      for (const { up, alias, index, addresses: own } of host.kernel.links.values()) {
        const id = taggedId(alias);
        if (!up || id === undefined) continue;
        const device = `${host.name} ${index}`;
        assert(!ids.has(id), `${id} is attached twice: ${ids.get(id)} and ${device}`);
        ids.set(id, device);
        for (const address of own) {
          const other = addresses.get(address);
          assert(other === undefined, `${address} is used by ${other} and by ${id}`);
          addresses.set(address, id);
          const open = allowed.includes(address.replace('/24', ''));
          assert(open, `${address} of ${id} is excluded`);
        }
        const generation = Number(alias?.split('#')[1]);
        const before = this.#generations.get(id) ?? 0;
        assert(generation >= before, `generation of ${id} goes back: ${before}, ${generation}`);
        this.#generations.set(id, generation);
      }
    }
  }

  #recordsOf({ folder }: Host): Record[] {
    const records = join(folder, 'run', 'attachments');
    return readdirSync(records)
      .filter((name) => name.endsWith('.json'))
      .map((name) => JSON.parse(readFileSync(join(records, name), 'utf8')) as Record);
  }

  /** When nothing is under way: kernel, records and ledger say the same. */
  #checkSettled(): void {
    for (const host of this.#hosts) {
      this.#checkEdited(host);
      // What the clone was granted in its name ends with the detach that comes for all.
      if (host.cloned) continue;
      const records = this.#recordsOf(host);
      for (const { id, state } of records) assert.equal(state, 'attached', `${id} is ${state}`);
      const recorded = records.map(({ id, generation }) => `${id}#${generation}`).toSorted();
      const devices = [...host.kernel.links.values()].map(({ alias, up }) => {
        return `${(alias ?? 'volt:untagged').slice('volt:'.length)}${up ? '' : ' down'}`;
      });
      assert.deepEqual(devices.toSorted(), recorded, `${host.name}: kernel and records`);
      const leases = [...this.#ledger.leases.values()]
        .filter((lease) => lease.host === host.name)
        // Of a VM that a reboot ended: kept until somebody attaches it again, or detaches it.
        .filter(({ id, bootId }) => {
          const kept = bootId !== this.#whoOf(host).machine.bootId;
          return !kept || records.some((record) => record.id === id);
        })
        .map(({ id, generation }) => `${id}#${generation}`);
      assert.deepEqual(leases.toSorted(), recorded, `${host.name}: ledger and records`);
    }
    for (const { host, operation, request, sequence } of this.#bus.jobs) {
      // Whoever has asked for the same and waited has the answer already.
      if (this.#called.has(request)) continue;
      const event = this.#bus.outcomeOf(host, operation, request.requestId);
      assert(event !== undefined, `job ${sequence} ended without an event`);
    }
    this.#checkOrder();
  }

  /** Every host knows the network as it is, and what was granted since is as it says. */
  #checkEdited(host: Host): void {
    const { network, revision, editedAt } = this.#ledger;
    assert(network !== undefined, 'the network is gone');
    const path = join(host.folder, 'state', 'networks.json');
    const known = JSON.parse(readFileSync(path, 'utf8')) as {
      revision: number;
      networks: { revision: number }[];
    };
    assert.equal(known.revision, revision, `${host.name} has read the networks`);
    // An edit that was lost with the definition is known to some.
    if (network.revision === revision) {
      const told = known.networks.map((one) => one.revision);
      assert.deepEqual(told, [revision], `${host.name} knows the network`);
    }
    for (const { alias, mtu } of host.kernel.links.values()) {
      if (Number(alias?.split('#')[1]) <= editedAt) continue;
      assert.equal(mtu, network.network.mtu, `${host.name}: MTU of ${alias}`);
    }
  }

  /** What stands was not ended by a later job. */
  #checkOrder(): void {
    for (const host of this.#hosts.filter(({ cloned }) => !cloned)) {
      for (const { id, generation } of this.#recordsOf(host)) {
        const made = this.#bus.events.find(
          ({ type, subject, body }) =>
            type === 'attached' && subject === id && body['generation'] === generation,
        );
        assert(made !== undefined, `${id}#${generation} was never told of`);
        const by = made.body['requestId'];
        const attach = this.#bus.jobs.find(({ request }) => request.requestId === by);
        // Who calls for the same may have been the later one.
        if (attach === undefined || this.#called.has(attach.request)) continue;
        const last = this.#bus.jobs.findLast(({ request }) => request.requestId === by);
        const ended = this.#bus.jobs.find(
          (job) =>
            job.host === host.name &&
            job.operation === 'detach' &&
            job.request.id === id &&
            job.sequence > (last ?? attach).sequence &&
            this.#bus.outcomeOf(job.host, 'detach', job.request.requestId)?.type === 'detached' &&
            // One that had been here before was no later job.
            this.#bus.jobs.findIndex(({ request }) => request === job.request) ===
              this.#bus.jobs.indexOf(job) &&
            !this.#answers.has(`${job.host} detach ${job.request.requestId}`),
        );
        assert(ended === undefined, `${id} stands, although job ${ended?.sequence} detached it`);
      }
    }
  }

  #everything(): { host: string; id: string }[] {
    return this.#hosts.flatMap(({ name }) =>
      Array.from({ length: IDS }, (_, n) => ({ host: name, id: `vm-${n + 1}` })),
    );
  }

  #checkEmpty(): void {
    this.#checkSettled();
    assert.deepEqual([...this.#ledger.leases.keys()], [], 'leases are left');
    for (const host of this.#hosts) {
      assert.deepEqual(this.#recordsOf(host), [], `${host.name}: records are left`);
      assert.deepEqual([...host.kernel.links.values()], [], `${host.name}: devices are left`);
    }
  }

  /** Whoever follows an attachment on its host sees it begin before it ends, and end. */
  #checkEvents(): void {
    const states = new Map<string, 'attached' | 'detached'>();
    for (const { host, type, subject, body } of this.#bus.events) {
      const { generation } = body;
      if (typeof generation !== 'number') continue;
      const key = `${host} ${subject}#${generation}`;
      if (type === 'attached') {
        assert.notEqual(states.get(key), 'detached', `${key}: attached after it was detached`);
        states.set(key, 'attached');
      } else if (type === 'detached') {
        states.set(key, 'detached');
      }
    }
    for (const [key, state] of states) assert.equal(state, 'detached', `${key}: end not told`);
  }

  /** Of a host that was two nobody remembers all of what it was asked. */
  #isCloned(name: string): boolean {
    return this.#hosts.some((host) => host.name === name && host.cloned);
  }

  /** One id stands for one outcome. */
  #sameEvent(first: StoredEvent, second: StoredEvent): void {
    const [was, is] = [eventSummary(first), eventSummary(second)];
    if (was === is || this.#isCloned(first.host)) return;
    this.#broken.push(`one event of ${first.subject}: ${was}, then ${is}`);
  }
}

/** What of an event must be the same each time. */
function eventSummary({ type, body }: StoredEvent): string {
  const { requestId, generation, error } = body;
  const code = (error as { code: string } | undefined)?.code ?? '';
  return `${type} ${String(requestId)} ${type === 'attached' ? String(generation) : code}`;
}

/** What of an answer must be the same each time. */
function summary(answer: Readonly<globalThis.Record<string, unknown>>): string {
  const attachment = answer['attachment'] as
    { generation: number; addresses: { address: string }[] } | undefined;
  if (attachment === undefined) return JSON.stringify(answer);
  return `${attachment.generation} ${attachment.addresses.map(({ address }) => address).join()}`;
}
