import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { Redis } from 'ioredis';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import { until } from '../../support/agent.ts';
import { addNamespace, deviceNames, filesIn, ip, removeNamespace } from '../../support/kernel.ts';
import { startStack, type Stack } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// Whatever happens to a host, and whatever happens right after it: kernel, records and Redis end in agreement. They
// are read by iproute2, from files and by a plain Redis client.

const ID = 'pair';
const NETNS = 'pairs';
const FOREIGN = 'foreign0';

let stack: Stack;
let redis: Redis;
let foreign: unknown;

const run = (tool: string, ...args: string[]): void => {
  execFileSync(requireTool(tool), args, { stdio: 'ignore' });
};

const namespaceIsThere = (): boolean => existsSync(`/run/netns/${NETNS}`);

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

async function attach(): Promise<void> {
  const request = {
    id: ID,
    workload: 'container-pair',
    kind: 'container',
    network: 'volt0',
  } as const;
  const netns = `/run/netns/${NETNS}`;
  const ends = ['NAMESPACE_NOT_FOUND', 'ALREADY_ATTACHED', 'INTERFACE_EXISTS'];
  await patiently(
    () => stack.client.attach(stack.host, { ...request, netns }, { timeoutMs: 2_000 }),
    ends,
  );
}

const detach = (): Promise<void> =>
  patiently(() => stack.client.detach(stack.host, { id: ID }, { timeoutMs: 2_000 }));

const EVENTS: Readonly<Record<string, () => Promise<void> | void>> = {
  attach,
  detach,
  'attach again': async () => {
    await attach();
    await attach();
  },
  restart: () => stack.agent.restart('SIGKILL'),
  'flush nft': () => run('nft', 'flush', 'ruleset'),
  'delete link': () => {
    for (const name of deviceNames())
      if (name.startsWith('veth-')) run('ip', 'link', 'delete', name);
  },
  'delete namespace': () => {
    if (namespaceIsThere()) removeNamespace(NETNS);
  },
  'Redis restart': async () => {
    await stack.redis.kill();
    await stack.redis.restart();
  },
  'NATS restart': async () => {
    await stack.nats.kill();
    await stack.nats.restart();
  },
};

beforeAll(async () => {
  stack = await startStack({ config: { reconcileSeconds: 0.5, heartbeatSeconds: 0.5 } });
  redis = new Redis(stack.redis.url);
  redis.on('error', () => {});
  run('ip', 'link', 'add', FOREIGN, 'type', 'bridge');
  run('ip', 'addr', 'add', '192.0.2.1/24', 'dev', FOREIGN);
  foreign = ip('addr', 'show', 'dev', FOREIGN);
});
afterAll(async () => {
  redis.disconnect();
  await stack[Symbol.asyncDispose]();
  for (const name of deviceNames()) if (name !== 'lo') run('ip', 'link', 'delete', name);
});
beforeEach(() => {
  addNamespace(NETNS);
});
afterEach(async () => {
  await detach();
  await stack.gone(ID);
  if (namespaceIsThere()) removeNamespace(NETNS);
});

/** What kernel, records and Redis each have of the attachment, as nobody of ours reads it. */
async function views(): Promise<Record<'kernel' | 'records' | 'redis', string[]>> {
  const kernel = ip('link').flatMap(({ ifalias }) =>
    typeof ifalias === 'string' ? [ifalias] : [],
  );
  const stores = await redis.keys('*:leases');
  const held = await Promise.all(stores.map((key) => redis.hexists(key, ID)));
  return {
    kernel: kernel.filter((alias) => alias.startsWith(`volt:${ID}#`)),
    records: filesIn(`${stack.agent.runtimeDir}/attachments`).filter((file) =>
      file.endsWith('.json'),
    ),
    redis: stores.filter((_, place) => held[place] === 1),
  };
}

for (const [first, begin] of Object.entries(EVENTS)) {
  test(`${first}, and anything after it, ends in agreement`, async () => {
    for (const [second, follow] of Object.entries(EVENTS)) {
      if (!namespaceIsThere()) addNamespace(NETNS);
      await attach();
      await begin();
      await follow();
      await until(
        `agreement after ${first}, ${second}`,
        async () => {
          const { kernel, records, redis: leases } = await views();
          const { inSync } = await stack.client.check(stack.host, {}, { timeoutMs: 1_000 });
          // One whose namespace is gone waits for its grace, with its record, lease and no device.
          const waits = !namespaceIsThere() && records.length === 1 && kernel.length === 0;
          const agree = kernel.length === records.length && leases.length === records.length;
          return waits || (inSync && agree);
        },
        30_000,
      );
      expect(ip('addr', 'show', 'dev', FOREIGN)).toEqual(foreign);
      await detach();
      await stack.gone(ID);
      await until('nothing is left', async () => {
        const { kernel, records, redis: leases } = await views();
        return kernel.length + records.length + leases.length === 0;
      });
    }
  });
}
