import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { VoltError } from '#protocol/errors.ts';
import { until } from './agent.ts';
import { disagreements, type Foreign, makeForeign, viewsOf } from './agreement-of-host.ts';
import { addNamespace, deviceNames, removeNamespace } from './kernel.ts';
import { startStack, type Stack } from './stack.ts';
import { requireTool } from './tools.ts';

// Whatever happens to a host, and whatever happens right after it: kernel, records and Redis end in agreement, and
// what is others' stays as it was. They are read by iproute2 and nft, from files and by redis-cli.

const ID = 'pair';
const NETNS = 'pairs';

export const DISTURBANCES = [
  'attach',
  'detach',
  'attach again',
  'restart',
  'flush nft',
  'delete link',
  'delete namespace',
  'Redis restart',
  'NATS restart',
] as const;

export type Disturbance = (typeof DISTURBANCES)[number];

/** One host, and a container of it that is disturbed. */
export class DisturbedHost implements AsyncDisposable {
  readonly #stack: Stack;
  readonly #foreign: Foreign;
  readonly #others: unknown;

  private constructor(stack: Stack) {
    this.#stack = stack;
    this.#foreign = makeForeign();
    this.#others = this.#foreign.look();
  }

  static async start(): Promise<DisturbedHost> {
    const config = { reconcileSeconds: 0.5, heartbeatSeconds: 0.5 };
    return new DisturbedHost(await startStack({ config }));
  }

  /**
   * An attachment that all agree on, and one disturbance after the other, none waiting for what the last one leads to.
   * Then all agree again, and after a detach nothing is left.
   */
  async endure(disturbances: readonly Disturbance[]): Promise<void> {
    const named = disturbances.join(', ');
    addNamespace(NETNS);
    try {
      await this.#attach();
      for (const one of disturbances) await this.#disturb(one);
      await until(`agreement after ${named}`, () => this.#agree());
      assert.deepEqual(this.#foreign.look(), this.#others, `others' after ${named}`);
      await this.#detach();
      await this.#stack.gone(ID);
      await until(`nothing is left after ${named}`, () => {
        const views = viewsOf(this.#stack);
        return disagreements(views).length + views.records.size === 0;
      });
    } finally {
      if (namespaceIsThere()) removeNamespace(NETNS);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#foreign[Symbol.dispose]();
    await this.#stack[Symbol.asyncDispose]();
    for (const name of deviceNames()) if (name !== 'lo') run('ip', 'link', 'delete', name);
  }

  async #agree(): Promise<boolean> {
    const views = viewsOf(this.#stack);
    const told = disagreements(views);
    // One whose namespace is gone waits for its grace, with its record, lease and no device.
    const { kernel, records, leases } = views;
    const waits = !namespaceIsThere() && kernel.size === 0 && records.size === 1;
    if (waits && leases.get(ID) === records.get(ID)) return true;
    assert.deepEqual(told, []);
    const { inSync } = await this.#stack.client.check(this.#stack.host, {}, { timeoutMs: 1_000 });
    return inSync;
  }

  async #disturb(which: Disturbance): Promise<void> {
    const { agent, redis, nats } = this.#stack;
    switch (which) {
      case 'attach':
        return this.#attach();
      case 'detach':
        return this.#detach();
      case 'attach again':
        await this.#attach();
        return this.#attach();
      case 'restart':
        return agent.restart('SIGKILL');
      case 'flush nft':
        // Others' rules go, too, by that hand and not ours.
        run('nft', 'flush', 'ruleset');
        this.#foreign.makeRules();
        return undefined;
      case 'delete link':
        for (const name of deviceNames()) {
          if (/^veth-.*-h$/.test(name)) deleteLink(name);
        }
        return undefined;
      case 'delete namespace':
        if (namespaceIsThere()) removeNamespace(NETNS);
        return undefined;
      case 'Redis restart':
        await redis.kill();
        return redis.restart();
      case 'NATS restart':
        await nats.kill();
        return nats.restart();
    }
  }

  async #attach(): Promise<void> {
    const netns = `/run/netns/${NETNS}`;
    const request = { id: ID, workload: 'container-pair', kind: 'container' } as const;
    await patiently(
      () =>
        this.#stack.client.attach(
          this.#stack.host,
          { ...request, network: 'volt0', netns },
          { timeoutMs: 2_000 },
        ),
      ['NAMESPACE_NOT_FOUND', 'ALREADY_ATTACHED', 'INTERFACE_EXISTS'],
    );
  }

  #detach(): Promise<void> {
    const { client, host } = this.#stack;
    return patiently(() => client.detach(host, { id: ID }, { timeoutMs: 2_000 }));
  }
}

const namespaceIsThere = (): boolean => existsSync(`/run/netns/${NETNS}`);

function run(tool: string, ...args: string[]): void {
  execFileSync(requireTool(tool), args, { stdio: 'ignore' });
}

/** One that goes with its namespace just now may be gone before. */
function deleteLink(name: string): void {
  try {
    run('ip', 'link', 'delete', name);
  } catch (error) {
    if (deviceNames().includes(name)) throw error;
  }
}

/** As an orchestrator does it: what is retryable is tried again, and what cannot be any more is left. */
async function patiently(
  call: () => Promise<unknown>,
  ends: readonly string[] = [],
): Promise<void> {
  await until('it is answered', async () => {
    try {
      await call();
      return true;
    } catch (error) {
      return error instanceof VoltError && ends.includes(error.code);
    }
  });
}
