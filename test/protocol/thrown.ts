import { VoltError } from '#protocol/errors.ts';

/** The VoltError that `work` throws. Anything else thrown, or nothing, fails the test. */
export function thrownBy(work: () => unknown): VoltError {
  try {
    work();
  } catch (error) {
    if (error instanceof VoltError) return error;
    throw error;
  }
  throw new Error('did not throw');
}
