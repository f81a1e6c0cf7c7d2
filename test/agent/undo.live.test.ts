import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { describe, expect, test } from 'vitest';
import { addNamespace, deviceNames, ip, only, removeNamespace } from '../support/kernel.ts';
import { until } from '../support/agent.ts';
import { startStack } from '../support/stack.ts';
import { dyingWithParent, requireTool } from '../support/tools.ts';

// Every netlink message of an attach is made to fail in turn, by strace in the kernel's place: each time nothing
// is left, and the same request succeeds when it is repeated.

const NETWORK = { network: 'undo0', subnet: '10.46.0.0/24', gateway: '10.46.0.1' };
/** More than an attach takes. */
const MOST_CALLS = 30;

function makeBridge(): void {
  const commands = [
    'link add undo0 address 02:00:00:00:00:46 type bridge',
    'addr add 10.46.0.1/24 dev undo0',
    'link set undo0 mtu 1450',
    'link set undo0 up',
  ];
  for (const command of commands) execFileSync(requireTool('ip'), command.split(' '));
}

/** Makes the `when`-th message from now on fail, until disposed. The agent's start is not counted. */
async function failing({ pid }: { pid: number }, when: number): Promise<AsyncDisposable> {
  const inject = ['-e', 'trace=sendto', '-e', `inject=sendto:error=ENOMEM:when=${when}`];
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

describe('a message that fails', () => {
  test.each(['container', 'vm'] as const)(
    'within the attach of a %s leaves nothing',
    async (kind) => {
      makeBridge();
      addNamespace('undo');
      let refused = 0;
      await using stack = await startStack({ networks: [NETWORK] });
      for (let when = 1; when <= MOST_CALLS; when += 1) {
        const request = {
          id: `undo-${when}`,
          workload: `${kind}-undo`,
          kind,
          network: 'undo0',
          ...(kind === 'container' && { netns: '/run/netns/undo' }),
        } as const;
        const before = await stack.snapshot();
        const failure = await failing(stack.agent, when);
        const error: unknown = await stack.client
          .attach(stack.host, request)
          .catch((e: unknown) => e);
        await failure[Symbol.asyncDispose]();
        const failed = error instanceof Error;
        if (failed) {
          refused += 1;
          expect(error).toMatchObject({ code: 'KERNEL_ERROR', details: { errno: 'ENOMEM' } });
          expect(await stack.snapshot(), `message ${when}`).toEqual(before);
          expect(ip('-n', 'undo', 'link').map(({ ifname }) => ifname)).toEqual(['lo']);
          const again = await stack.client.attach(stack.host, request);
          expect(again.replayed).toBe(false);
          expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
        }
        await stack.client.detach(stack.host, { id: request.id });
        await stack.gone(request.id);
        expect(deviceNames().toSorted()).toEqual(['lo', 'undo0']);
        // The first attach that nothing failed in has no later call to fail.
        if (!failed) break;
      }
      expect(refused).toBeGreaterThan(2);
      expect(refused).toBeLessThan(MOST_CALLS);
      // The bridge was there before us: its address, MTU and MAC are as they were.
      const bridge = only(ip('addr', 'show', 'undo0'));
      expect(bridge).toMatchObject({ mtu: 1450, address: '02:00:00:00:00:46' });
      expect(bridge.addr_info.map(({ local }) => local)).toContain('10.46.0.1');
      execFileSync(requireTool('ip'), ['link', 'delete', 'undo0']);
      removeNamespace('undo');
    },
    180_000,
  );
});
