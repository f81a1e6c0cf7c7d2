import { expect } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import type { Stack } from './stack.ts';
import { atCall } from './strace.ts';

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
    const failure = await atCall(stack.agent, { call: 'sendto', when }, 'error=ENOMEM');
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
