import { expect } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import type { Stack } from './stack.ts';
import { atCall } from './strace.ts';

/** More than an attach takes. */
const MOST_CALLS = 80;
/** Something else in the agent may have made the call that failed: the attach is tried again. */
const MOST_TRIES = 3;

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
  let tries = 0;
  while (refused < MOST_CALLS && tries < MOST_TRIES) {
    const when = refused + 1;
    tries += 1;
    const asked = request(`undo-${when}-${tries}`);
    const before = await stack.snapshot();
    const failure = await atCall(stack.agent, { call: 'sendto', when }, 'error=ENOMEM');
    const error: unknown = await stack.client.attach(stack.host, asked).catch((e: unknown) => e);
    await failure[Symbol.asyncDispose]();
    const failed = error instanceof Error;
    if (failed) {
      refused = when;
      tries = 0;
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
  }
  expect(refused).toBeGreaterThan(1);
  expect(refused).toBeLessThan(MOST_CALLS);
}
