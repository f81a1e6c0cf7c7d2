import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

const LIVE = 'test/**/*.live.test.ts';
/** What takes many minutes: `npm run test:soak`. */
const SOAK = 'test/soak/**/*.test.ts';
/** What needs hardware that only the lab's guest has: `npm run test:lab`. */
const LAB = 'test/lab/**/*.test.ts';

/** What needs a Debian to install into: `npm run test:package`. */
const PACKAGE = 'test/**/*.package.test.ts';

/** What takes longest begins first: one of these that began last would go on alone. */
const LONGEST = ['kill-points', 'history', 'pairs', 'recovery', 'conformance', 'throws', 'drift'];

function placeOf({ moduleId }: TestSpecification): number {
  const place = LONGEST.findIndex((name) => moduleId.endsWith(`/${name}.live.test.ts`));
  return place === -1 ? LONGEST.length : place;
}

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const sorted = await super.sort(files);
    return sorted.toSorted((a, b) => placeOf(a) - placeOf(b));
  }
}

// Every test file has a process of its own, and with it a main thread that a live test can move into a
// throw-away network and mount namespace. Three at a time: a live test waits for half of its time.
export default defineConfig({
  test: {
    pool: 'forks',
    isolate: true,
    maxWorkers: 3,
    sequence: { sequencer: LongestFirst },
    // Far beyond what a test takes, also beside other work: a time-out is no assertion.
    testTimeout: 240_000,
    hookTimeout: 240_000,
    teardownTimeout: 10_000,
    projects: [
      {
        extends: true,
        test: { name: 'unit', include: ['test/**/*.test.ts'], exclude: [LIVE, SOAK, LAB, PACKAGE] },
      },
      {
        extends: true,
        test: {
          name: 'live',
          include: [LIVE],
          exclude: [SOAK],
          setupFiles: ['test/support/live.ts'],
        },
      },
      {
        extends: true,
        test: { name: 'lab', include: [LAB] },
      },
      {
        extends: true,
        test: {
          name: 'package',
          include: [PACKAGE],
          setupFiles: ['test/support/live.ts'],
          // It unpacks, installs and starts a hundred things one after the other.
          testTimeout: 900_000,
          hookTimeout: 900_000,
        },
      },
      {
        extends: true,
        test: {
          name: 'soak',
          include: [SOAK],
          setupFiles: ['test/support/live.ts'],
          testTimeout: 3_600_000,
        },
      },
    ],
  },
});
