import { startStack, type Stack } from '../support/stack.ts';

export type { Stack } from '../support/stack.ts';

type StackOptions = NonNullable<Parameters<typeof startStack>[0]>;

/** As docs/operating.md asks for it. */
export const REDIS_ARGS = ['--appendonly', 'yes'];
/** The default: the tests' own is shorter. */
export const HEARTBEAT_SECONDS = 5;

/** A host as an operator would have it: what is stored is on a disk, and the intervals are those of the default. */
export const startHost = (options: StackOptions = {}): Promise<Stack> =>
  startStack({
    ...options,
    redisArgs: REDIS_ARGS,
    config: { heartbeatSeconds: HEARTBEAT_SECONDS, ...options.config },
  });
