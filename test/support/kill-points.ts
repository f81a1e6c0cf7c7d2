import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import type { AttachRequest } from '#protocol/attachment.ts';
import { decodeAnswer } from '#protocol/envelope.ts';
import { VoltError } from '#protocol/errors.ts';
import { until } from './agent.ts';
import { disagreements, type Foreign, makeForeign, viewsOf } from './agreement-of-host.ts';
import { addNamespace, ip, removeNamespace } from './kernel.ts';
import { type Snapshot, startStack, type Stack } from './stack.ts';
import { atCall, callsDuring, type Fate, type Point } from './strace.ts';
import { requireTool } from './tools.ts';

// An agent that dies, or is refused something, at any system call of an attach or a detach: afterwards kernel, records
// and Redis say the same, and whoever asks again gets the first answer, or one that is as good as if nothing had been.

const PARENT = 'nic0';
const NETNS = 'points';

// What cools down is not as it was.
const reuseDelaySeconds = 0;

const NETWORKS = [
  { network: 'kp-bridged', subnet: '10.61.0.0/24', gateway: '10.61.0.1', reuseDelaySeconds },
  {
    network: 'kp-host-only',
    type: 'host-only',
    subnet: '10.62.0.0/24',
    gateway: '10.62.0.1',
    nat: {},
    reuseDelaySeconds,
  },
  { network: 'kp-isolated', type: 'isolated', subnet: '10.63.0.0/24', reuseDelaySeconds },
  {
    network: 'kp-passthru',
    type: 'macvtap',
    parent: PARENT,
    mode: 'passthru',
    subnet: '10.64.0.0/24',
    reuseDelaySeconds,
  },
] as const;

type Subject = Pick<AttachRequest, 'kind' | 'network' | 'ports' | 'bandwidth'> & {
  /** Whether its container's end goes into a namespace of ours. */
  readonly inNamespace?: boolean;
  /** Whether its device is in the host's namespace, tagged, and under the port filter. */
  readonly filtered: boolean;
};

const LIMITED = { ingressBitsPerSecond: 8_000_000, egressBitsPerSecond: 8_000_000 };
const MAPPED: AttachRequest['ports'] = [{ protocol: 'tcp', hostPort: 8_080, port: 80 }];

const SUBJECTS = {
  'a VM on a bridge': { kind: 'vm', network: 'kp-bridged', bandwidth: LIMITED, filtered: true },
  'a container on a bridge': {
    kind: 'container',
    network: 'kp-bridged',
    inNamespace: true,
    filtered: true,
  },
  'a VM behind the host': { kind: 'vm', network: 'kp-host-only', ports: MAPPED, filtered: true },
  'a container behind the host': {
    kind: 'container',
    network: 'kp-host-only',
    ports: MAPPED,
    inNamespace: true,
    filtered: true,
  },
  'an isolated VM': { kind: 'vm', network: 'kp-isolated', filtered: false },
  'an isolated container': { kind: 'container', network: 'kp-isolated', filtered: false },
  'a VM on a parent': { kind: 'vm', network: 'kp-passthru', filtered: false },
  'a container on a parent': {
    kind: 'container',
    network: 'kp-passthru',
    inNamespace: true,
    filtered: false,
  },
} as const satisfies Record<string, Subject>;

type SubjectName = keyof typeof SUBJECTS;

export const SUBJECT_NAMES = Object.keys(SUBJECTS) as SubjectName[];

export const OPERATIONS = ['attach', 'detach'] as const;
type Operation = (typeof OPERATIONS)[number];

/** Netlink, TUN, files, and the connections to Redis and NATS. */
export const CALLS = [
  ...['sendto', 'sendmsg', 'recvmsg', 'recvfrom', 'ioctl', 'openat', 'open', 'close', 'socket'],
  ...['read', 'write', 'writev', 'pwrite64', 'rename', 'unlink', 'mkdir', 'fsync', 'fdatasync'],
  ...['setns', 'unshare', 'mount', 'umount2', 'bind'],
];

/**
 * Where a refusal is the kernel's answer to the agent itself. Of others libuv makes an end of the process, and of
 * `setns`, without which there is no way back from a workload's namespace, the agent does.
 */
const REFUSABLE = new Set([
  ...['sendto', 'sendmsg', 'recvmsg', 'recvfrom', 'ioctl', 'openat', 'open', 'socket', 'rename'],
  ...['unlink', 'mkdir', 'unshare', 'mount', 'umount2', 'bind'],
]);

interface Told {
  readonly type: string;
  readonly id: string;
  readonly generation: number | undefined;
  readonly requestId: string | undefined;
}

/** Long enough for an attach under strace. On a busy machine it may not be: then it is asked for again. */
const ANSWER_MS = 800;

/** An answer that has left is on its way for less than this; where it is not, it counts as none. */
const ON_ITS_WAY_MS = 50;

/** What follows an answer: the event, and of a detach its second half. */
const AFTERWARDS_MS = 150;

/** One host on which attachments meet their fates. */
export class FatedHost implements AsyncDisposable {
  readonly #stack: Stack;
  readonly #foreign: Foreign;
  readonly #others: unknown;
  readonly #empty: Snapshot;
  /** What was published, by attachment. */
  readonly #told = new Map<string, readonly Told[]>();
  #asked = 0;

  private constructor(stack: Stack, foreign: Foreign, empty: Snapshot) {
    this.#stack = stack;
    stack.connection.subscribe('volt.net.v1.event.>', {
      callback: (_, { headers, data }) => {
        const body = decodeAnswer(data) as { generation?: number; requestId?: string };
        const { generation, requestId } = body;
        const type = headers?.get('ce-type').split('.').at(-1) ?? '';
        const about = headers?.get('ce-subject') ?? '';
        const id = headers?.get('ce-id') ?? '';
        this.#told.set(about, [...this.#toldOf(about), { type, id, generation, requestId }]);
      },
    });
    this.#foreign = foreign;
    this.#others = foreign.look();
    this.#empty = empty;
  }

  static async start(): Promise<FatedHost> {
    run(`link add ${PARENT} address 02:00:00:00:00:64 type veth peer name wire0`);
    run(`link set ${PARENT} up`);
    run('link set wire0 up');
    addNamespace(NETNS);
    const config = { reconcileSeconds: 1, heartbeatSeconds: 0.5 };
    const stack = await startStack({ networks: NETWORKS, config });
    // Bridges stay.
    for (const name of ['a VM on a bridge', 'a VM behind the host'] as const) {
      const { filtered: _, ...subject } = SUBJECTS[name];
      const first = { id: `first-${subject.network}`, workload: 'first', ...subject };
      await stack.client.attach(stack.host, first);
      await stack.client.detach(stack.host, { id: first.id });
      await stack.gone(first.id);
    }
    return new FatedHost(stack, makeForeign(), await stack.snapshot());
  }

  /** The calls of one such request that nothing befalls, in order. */
  async pointsOf(name: SubjectName, operation: Operation): Promise<Point[]> {
    const request = this.#request(name);
    if (operation === 'detach') await this.#attach(request);
    const points = await callsDuring(this.#stack.agent, CALLS, async () => {
      await this.#ask(operation, request);
      await sleep(AFTERWARDS_MS);
    });
    await this.#end(request.id);
    return points;
  }

  /** False where this fate cannot befall at this call. */
  static canBefall({ call }: Point, fate: Fate): boolean {
    return fate === 'signal=SIGKILL' || REFUSABLE.has(call);
  }

  async endure(
    name: SubjectName,
    operation: Operation,
    { point, fate }: { readonly point: Point; readonly fate: Fate },
  ): Promise<void> {
    const { agent } = this.#stack;
    const what = `${operation} of ${name}, ${fate} at ${point.call} ${point.when}`;
    const request = this.#request(name);
    try {
      if (operation === 'detach') await this.#attach(request);
      const waiting = await atCall(agent, point, fate);
      const first = await this.#outcome(operation, request);
      if (!(first instanceof VoltError)) await sleep(AFTERWARDS_MS);
      await waiting[Symbol.asyncDispose]();
      // Where the call did not come, it ends now.
      if (fate === 'signal=SIGKILL') await agent.restart('SIGKILL');
      else await agent.health();
      await until('all agree', () => this.#agree(name, request.id));
      const again = await this.#again(operation, request, first);
      // The second half of a detach follows its answer.
      if (operation === 'detach') await this.#stack.gone(request.id);
      await until('all agree', () => this.#agree(name, request.id));
      const there = viewsOf(this.#stack).records.has(request.id);
      if (operation === 'attach' && !(again instanceof VoltError)) assert(there, 'not attached');
      await this.#end(request.id);
      await until('all is told', () => this.#isToldRight(request, again));
      assert.deepEqual(this.#foreign.look(), this.#others, "others'");
    } catch (error) {
      const said = agent.output().slice(-2_000);
      await agent.restart('SIGKILL');
      await agent.ready();
      // The next is not to find what is left of this one.
      await this.#end(request.id).catch(() => {});
      throw new Error(`${what}: ${String(error)}; the agent: ${said}`, { cause: error });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#foreign[Symbol.dispose]();
    await this.#stack[Symbol.asyncDispose]();
    removeNamespace(NETNS);
    run(`link delete ${PARENT}`);
  }

  #request(name: SubjectName): AttachRequest & { readonly requestId: string } {
    this.#asked += 1;
    const id = `kp-${this.#asked}`;
    const { filtered: _, inNamespace, ...subject }: Subject = SUBJECTS[name];
    const place = inNamespace === true ? { netns: `/run/netns/${NETNS}` } : {};
    return { id, requestId: `attach-${id}`, workload: `w-${id}`, ...subject, ...place };
  }

  #ask(operation: Operation, request: AttachRequest, timeoutMs = 10_000): Promise<object> {
    const { client, host } = this.#stack;
    const { id } = request;
    return operation === 'attach'
      ? client.attach(host, request, { timeoutMs })
      : client.detach(host, { id, requestId: `detach-${id}` }, { timeoutMs });
  }

  #attach(request: AttachRequest): Promise<object> {
    return this.#ask('attach', request);
  }

  async #outcome(operation: Operation, request: AttachRequest): Promise<object> {
    const asked = this.#ask(operation, request, ANSWER_MS).catch((error: unknown) => {
      if (error instanceof VoltError) return error;
      throw error;
    });
    // Whoever is killed never answers.
    const ended = this.#stack.agent.ended().then(async () => {
      await sleep(ON_ITS_WAY_MS);
      return new VoltError('AGENT_UNAVAILABLE', 'the agent has ended');
    });
    return Promise.race([asked, ended]);
  }

  /** What was answered is answered again; what was not, or may be tried again, is done. */
  async #again(operation: Operation, request: AttachRequest, first: object): Promise<object> {
    const final = !(first instanceof VoltError && first.retryable);
    let answer: object = {};
    await until('it is answered', async () => {
      answer = await this.#outcome(operation, request);
      return !(answer instanceof VoltError && answer.retryable);
    });
    if (!final) {
      if (answer instanceof VoltError) throw answer;
    } else if (first instanceof VoltError) {
      assert.equal(answer instanceof VoltError && answer.code, first.code);
    } else {
      assert.deepEqual({ ...answer, replayed: false }, { ...first, replayed: false });
    }
    return answer;
  }

  async #agree(name: SubjectName, id: string): Promise<boolean> {
    const views = viewsOf(this.#stack);
    assert.deepEqual(views.leases, views.records);
    if (SUBJECTS[name].filtered) assert.deepEqual(disagreements(views), []);
    const { client, host } = this.#stack;
    const { inSync, differences } = await client.check(host, {}, { timeoutMs: 1_000 });
    assert.deepEqual(differences, []);
    const attachment = await client.get(host, { id }).catch(() => undefined);
    assert.equal(attachment !== undefined, views.records.has(id));
    return inSync;
  }

  /** Whoever follows the events sees each attachment begin once and end after that, under one event id each. */
  #isToldRight({ id, requestId }: AttachRequest, answer: object): boolean {
    const told = this.#toldOf(id);
    const attached = told.filter(({ type }) => type === 'attached');
    const detached = told.filter(({ type }) => type === 'detached');
    const ended = new Set(detached.map(({ generation }) => generation));
    const ids = (some: readonly Told[]): number => new Set(some.map((one) => one.id)).size;
    for (const { generation } of attached) assert(ended.has(generation), `${generation} ends`);
    for (const generation of ended) {
      const ends = detached.filter((one) => one.generation === generation);
      assert.equal(ids(ends), 1, `${generation} ends once`);
      const last = told.findLastIndex((one) => one.generation === generation);
      assert.equal(told[last]?.type, 'detached', `nothing is told of ${generation} after its end`);
    }
    const own = attached.filter((one) => one.requestId === requestId);
    assert(ids(own) <= 1, 'the attach is told once');
    if ('attachment' in answer) assert.equal(ids(own), 1, 'the attach is told');
    return true;
  }

  #toldOf(id: string): readonly Told[] {
    return this.#told.get(id) ?? [];
  }

  /** Detached by whoever cleans up; then the host is as it was. */
  async #end(id: string): Promise<void> {
    const { client, host, gone, snapshot } = this.#stack;
    await until('it is detached', async () => {
      await client.detach(host, { id }, { timeoutMs: 2_000 });
      return true;
    });
    await gone(id);
    await until('nothing is left', async () => {
      const { elements, ...rest } = await snapshot();
      const { elements: known, ...empty } = this.#empty;
      assert.deepEqual(rest, empty);
      // What an agent knows of a bridge, the next learns with its first port.
      assert.deepEqual(
        elements.filter((one) => !known.includes(one)),
        [],
      );
      assert.deepEqual(
        ip('-n', NETNS, 'link').map(({ ifname }) => ifname),
        ['lo'],
      );
      const [parent] = ip('link', 'show', PARENT);
      assert.equal(parent?.['address'], '02:00:00:00:00:64');
      return true;
    });
  }
}

const run = (command: string): void => {
  execFileSync(requireTool('ip'), command.split(' '));
};
