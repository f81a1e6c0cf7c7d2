import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import { until } from './agent.ts';
import type { Stack } from './stack.ts';
import { dyingWithParent, requireTool } from './tools.ts';

/** More than an attach takes. */
const MOST_CALLS = 80;

/**
 * Makes every netlink message of an attach fail in turn, by strace in the kernel's place: each time nothing is left
 * (`nothingIsLeft` looks where a snapshot does not), and the same request succeeds when it is repeated.
 */
export async function failEachMessage(
  stack: Stack,
  request: (id: string) => AttachRequest,
  nothingIsLeft: () => void,
): Promise<void> {
  let refused = 0;
  for (let when = 1; when <= MOST_CALLS; when += 1) {
    const asked = request(`undo-${when}`);
    const before = await stack.snapshot();
    const failure = await atMessage(stack.agent, when, 'error=ENOMEM');
    const error: unknown = await stack.client.attach(stack.host, asked).catch((e: unknown) => e);
    await failure[Symbol.asyncDispose]();
    const failed = error instanceof Error;
    if (failed) {
      refused += 1;
      expect(error).toMatchObject({ code: 'KERNEL_ERROR', details: { errno: 'ENOMEM' } });
      expect(await stack.snapshot(), `message ${when}`).toEqual(before);
      nothingIsLeft();
      const again = await stack.client.attach(stack.host, asked);
      expect(again.replayed).toBe(false);
      expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
    }
    await stack.client.detach(stack.host, { id: asked.id });
    await stack.gone(asked.id);
    nothingIsLeft();
    // The first attach that nothing failed in has no later call to fail.
    if (!failed) break;
  }
  expect(refused).toBeGreaterThan(1);
  expect(refused).toBeLessThan(MOST_CALLS);
}

const ANNOUNCED_MS = 100;

/**
 * Has something happen at the `when`-th message that a process sends from now on, until disposed: it fails, or the
 * process is killed before it.
 */
export async function atMessage(
  { pid }: { readonly pid: number },
  when: number,
  what: 'error=ENOMEM' | 'signal=SIGKILL',
): Promise<AsyncDisposable> {
  // What a container announces a moment after its attach would be counted.
  await sleep(ANNOUNCED_MS);
  const inject = ['-e', 'trace=sendto', '-e', `inject=sendto:${what}:when=${when}`];
  const [program, args] = dyingWithParent([
    requireTool('strace'),
    ...['-f', '-o', '/dev/null', ...inject, '-p', String(pid)],
  ]);
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  const exited = once(child, 'exit');
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => (said += chunk.toString()));
  await until('strace is attached', () => said.includes('attached'));
  return {
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGTERM');
      await exited;
    },
  };
}
