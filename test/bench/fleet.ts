import { ends, put } from './fleet-changes.ts';
import { quiet } from './fleet-quiet.ts';
import { recovery, surveys, together } from './fleet-storms.ts';

const SIZES = [10, 1_000, 3_000, 10_000] as const;

/**
 * The ledger of a fleet: hosts that are played by the agent's own session and ledger watermark, before a real Redis. Each host has
 * a connection of its own where it is started, as agents have; where only what a call costs is measured, some share.
 */
export async function benchFleet(sizes: readonly number[]): Promise<void> {
  const longest = new Map<string, number>();
  process.stdout.write('\n   hosts\n');
  for (const size of sizes.length === 0 ? SIZES : sizes) {
    await quiet(longest, size);
    if (size < 100) continue;
    await together(longest, size);
    await recovery(longest, size, size === 3_000 ? 10 : 100);
    if (size === 1_000) {
      await put(longest, size);
      await surveys(size);
    }
    await ends(longest, size);
  }
  process.stdout.write('\n  longest call of each function, ms\n');
  for (const [name, us] of [...longest].toSorted(([, a], [, b]) => b - a)) {
    process.stdout.write(`    ${name.padEnd(24)}${(us / 1_000).toFixed(1).padStart(8)}\n`);
  }
}
