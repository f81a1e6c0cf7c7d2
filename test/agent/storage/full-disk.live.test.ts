import { execFileSync } from 'node:child_process';
import { cpSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { until } from '../../support/agent.ts';
import { disagreements, viewsOf } from '../../support/agreement-of-host.ts';
import { addNamespace } from '../../support/kernel.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// Disks that are full: the runtime folder, without which nothing is begun, and the state folder, which is missed.

const SIZE = 4 << 20;
let stack: Stack;

function mount(target: string): void {
  const options = `size=${SIZE},mode=700`;
  execFileSync(requireTool('mount'), ['-t', 'tmpfs', '-o', options, 'small', target]);
}

beforeAll(async () => {
  stack = await startStack();
  const { agent } = stack;
  await agent.kill();
  for (const folder of [agent.runtimeDir, agent.stateDir]) {
    const kept = `${folder}-kept`;
    cpSync(folder, kept, { recursive: true, filter: (name) => !name.endsWith('.sock') });
    mount(folder);
    cpSync(kept, folder, { recursive: true });
    rmSync(kept, { recursive: true });
  }
  await agent.restart();
  await agent.ready();
  addNamespace('full');
});
afterAll(async () => {
  await stack.agent.kill();
  for (const folder of [stack.agent.runtimeDir, stack.agent.stateDir]) {
    execFileSync(requireTool('umount'), ['--lazy', folder]);
  }
  await stack[Symbol.asyncDispose]();
});

/** Leaves so many pages. */
function fill(folder: string, pages: number): void {
  const { bavail, bsize } = statfsSync(folder);
  writeFileSync(join(folder, 'filler'), Buffer.alloc((bavail - pages) * bsize));
}

const empty = (folder: string): void => rmSync(join(folder, 'filler'), { force: true });

beforeEach(() => {
  empty(stack.agent.runtimeDir);
  empty(stack.agent.stateDir);
});

const KINDS = ['vm', 'container'] as const;

const request = (id: string, kind: (typeof KINDS)[number]) => ({
  id,
  workload: `${kind}-${id}`,
  kind,
  network: 'volt0',
  ...(kind === 'container' && { netns: '/run/netns/full' }),
});

const detached = async (id: string): Promise<void> => {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
};

async function agrees(): Promise<void> {
  await until('all agree', async () => {
    expect(disagreements(viewsOf(stack))).toEqual([]);
    return (await stack.client.check(stack.host, {})).inSync;
  });
}

// With no page left there is no intent, with one no result, with two no end of the announcement.
test.each([0, 1, 2])(
  'with %i pages left in the runtime folder an attach is made whole or not at all, and detaches go on',
  async (pages) => {
    const { client, host, agent } = stack;
    await client.attach(host, request('before', 'vm'));
    await until('it is told', async () => (await agent.health())['eventsPending'] === 0);
    for (const kind of KINDS) {
      empty(agent.runtimeDir);
      const before = await stack.snapshot();
      fill(agent.runtimeDir, pages);
      const id = `full-${pages}-${kind}`;
      const error: unknown = await client.attach(host, request(id, kind)).catch((e: unknown) => e);
      if (error instanceof Error) {
        expect(error).toMatchObject({ code: 'OVERLOADED', retryable: true });
        await stack.gone(id);
        empty(agent.runtimeDir);
        await until('nothing is left', async () => {
          const { usage: _, ...after } = await stack.snapshot();
          const { usage: _used, ...was } = before;
          expect(after).toEqual(was);
          return true;
        });
        expect((await client.attach(host, request(id, kind))).replayed).toBe(false);
      }
      await agrees();
      await detached(id);
    }
    fill(agent.runtimeDir, 0);
    await detached('before');
    await agrees();
  },
);

test('a state folder that is full costs no attach, no detach and no event', async () => {
  const { client, host, agent, connection } = stack;
  const heard: string[] = [];
  const events = connection.subscribe('volt.net.v1.event.>', {
    callback: (_, message) => heard.push(message.subject.split('.').at(-1) ?? ''),
  });
  await connection.flush();
  fill(agent.stateDir, 0);
  for (const kind of KINDS) {
    const asked = { ...request(`state-${kind}`, kind), requestId: `state-${kind}` };
    const { attachment } = await client.attach(host, asked);
    // The record knows what the memory of outcomes could not keep.
    expect(await client.attach(host, asked)).toEqual({ attachment, replayed: true });
  }
  await agrees();
  for (const kind of KINDS) await detached(`state-${kind}`);
  await agrees();
  await until('all is told', () => heard.length >= 4);
  expect(heard.toSorted()).toEqual(['attached', 'attached', 'detached', 'detached']);
  expect(agent.output()).toContain('ENOSPC');
  events.unsubscribe();
  empty(agent.stateDir);
  await agent.restart();
  await agent.ready();
  await client.attach(host, request('after', 'vm'));
  await agrees();
  await detached('after');
});
