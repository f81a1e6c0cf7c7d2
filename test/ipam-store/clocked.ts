import type { Redis } from 'ioredis';
import { mutated, type Patch } from './mutants.ts';

// No namespace has a clock of its own that a server would take for the time of day. So a server's clock is a key, for a
// copy of the library: tests set it as an operator sets a clock.

const CLOCK = 'test:clock';

/** The library, for which the key says what time the server has; without the key it is the server's own. */
export const clockedLibrary = (mistakes: readonly Patch[] = []): string =>
  mutated([
    [
      "local time = redis.call('TIME')",
      `local time = redis.call('TIME')
  local at = tonumber(redis.call('GET', '${CLOCK}') or nil)
  if at then
    time = { math.floor(at / 1000), at % 1000 * 1000 }
  end`,
    ],
    ...mistakes,
  ]);

export const setClock = (raw: Redis, ms: number): Promise<unknown> => raw.set(CLOCK, ms);

/** The server has its own clock again. */
export const unsetClock = (raw: Redis): Promise<unknown> => raw.del(CLOCK);
