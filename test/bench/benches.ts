import type { Table } from './figures.ts';
import type { Sizes } from './sizes.ts';

/** Answers what it has measured; those outside the suite may print for themselves. */
export type Bench = (sizes: Sizes) => Promise<readonly Table[] | void>;

/** What runs when nothing is named. */
export const SUITE: Readonly<Record<string, Bench>> = {
  kernel: async (sizes) => (await import('./kernel.ts')).benchKernel(sizes),
  attach: async (sizes) => (await import('./attach.ts')).benchAttach(sizes),
  cold: async (sizes) => (await import('./attach.ts')).benchCold(sizes),
  rate: async (sizes) => (await import('./rate.ts')).benchRate(sizes),
  drain: async (sizes) => (await import('./drain.ts')).benchDrain(sizes),
  tracing: async (sizes) => (await import('./tracing.ts')).benchTracing(sizes),
  metrics: async (sizes) => (await import('./metrics.ts')).benchMetrics(sizes),
  scale: async (sizes) => (await import('./scale.ts')).benchScale(sizes),
  loop: async (sizes) => (await import('./loop.ts')).benchLoop(sizes),
  restart: async (sizes) => (await import('./restart.ts')).benchRestart(sizes),
  memory: async (sizes) => (await import('./memory.ts')).benchMemory(sizes),
  rest: async (sizes) => (await import('./rest.ts')).benchRest(sizes),
};

export const OTHERS: Readonly<Record<string, Bench>> = {
  start: async () => (await import('./start.ts')).benchStart(),
  firewall: async () => (await import('./firewall.ts')).benchFirewall(),
  fairness: async (sizes) => (await import('./fairness.ts')).benchFairness(sizes),
  check: async ({ numbers }) => (await import('./check.ts')).benchCheck(numbers),
  fleet: async ({ numbers }) => (await import('./fleet.ts')).benchFleet(numbers),
  functions: async () => (await import('./functions.ts')).benchFunctions(),
  ipam: async () => (await import('./ipam.ts')).benchIpam(),
};
