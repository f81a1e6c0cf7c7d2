import type { Stage } from './stage.ts';
import type { World } from './world.ts';

export interface GuestOptions {
  readonly stage: Stage;
  readonly world: World;
  /** Called when the guest has its address and answers. */
  readonly whileItRuns: () => Promise<void>;
}

export async function runGuest(_options: GuestOptions): Promise<void> {
  throw new Error('no guest yet');
}
