import fc from 'fast-check';
import { begin, beginning, command, drain, HOSTS } from './commands.ts';
import { Fleet } from './fleet.ts';
import type { Store } from './fixture.ts';
import type { Patch } from './mutants.ts';

/** Runs random histories. The error tells the shortest one that was found to fail, step by step. */
export async function checkHistories(
  store: Store,
  options: {
    histories: number;
    longest: number;
    /** To be put into the library; then the first history that fails is good enough. */
    mistakes?: readonly Patch[];
    seed?: number;
    path?: string;
  },
): Promise<void> {
  const { histories, longest, mistakes = [], seed, path } = options;
  const fleets = await Fleet.open(store, HOSTS, mistakes);
  const commands = fc.commands([command], { maxCommands: longest, size: 'max' });
  const property = fc.asyncProperty(beginning, commands, async (variants, history) => {
    const fleet = await fleets.begin();
    try {
      await begin(fleet, variants);
      await fc.asyncModelRun(() => ({ model: fleet.model, real: fleet }), history);
      await drain(fleet);
    } catch (error) {
      throw new Error(`${fleet.transcript}\n${String(error)}`, { cause: error });
    }
  });
  const details = await fc.check(property, {
    numRuns: histories,
    endOnFailure: mistakes.length > 0,
    ...(seed !== undefined && { seed }),
    ...(path !== undefined && { path }),
  });
  await fleets.close();
  if (!details.failed) return;
  const { numRuns, numShrinks, counterexamplePath, errorInstance } = details;
  const message = errorInstance instanceof Error ? errorInstance.message : 'interrupted';
  throw new Error(
    `history ${numRuns} failed; made shorter ${numShrinks} times\n${message}\n` +
      `again: { seed: ${details.seed}, path: '${counterexamplePath}' }`,
  );
}
