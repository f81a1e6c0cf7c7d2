import { defineConfig } from 'vitest/config';

const LIVE = 'test/**/*.live.test.ts';
/** What takes many minutes: `npm run test:soak`. */
const SOAK = 'test/soak/**/*.test.ts';
/** What needs hardware that only the lab's guest has: `npm run test:lab`. */
const LAB = 'test/lab/**/*.test.ts';

// Every test file has a process of its own, and with it a main thread that a live test can move into a
// throw-away network and mount namespace. Two at a time: live tests start servers and measure time-outs.
export default defineConfig({
  test: {
    pool: 'forks',
    isolate: true,
    maxWorkers: 2,
    // Far beyond what a test takes, also beside other work: a time-out is no assertion.
    testTimeout: 60_000,
    hookTimeout: 60_000,
    teardownTimeout: 10_000,
    projects: [
      {
        extends: true,
        test: { name: 'unit', include: ['test/**/*.test.ts'], exclude: [LIVE, SOAK, LAB] },
      },
      {
        extends: true,
        test: {
          name: 'live',
          include: [LIVE],
          exclude: [SOAK],
          setupFiles: ['test/support/live.ts'],
          testTimeout: 180_000,
          hookTimeout: 180_000,
        },
      },
      {
        extends: true,
        test: {
          name: 'lab',
          include: [LAB],
          // A guest without hardware virtualisation is some ten times slower.
          testTimeout: 120_000,
          hookTimeout: 180_000,
        },
      },
      {
        extends: true,
        test: {
          name: 'soak',
          include: [SOAK],
          setupFiles: ['test/support/live.ts'],
          testTimeout: 3_600_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
});
