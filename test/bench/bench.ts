import { enterSandbox } from '../support/sandbox.ts';

// `npm run bench [-- NAME]`: figures beside those of others, in one run, in namespaces of its own. Ratios are
// what counts: absolute times drift with the machine.

const BENCHES: Readonly<Record<string, (numbers: readonly number[]) => Promise<void>>> = {
  attach: async () => (await import('./attach.ts')).benchAttach(),
  check: async (sizes) => (await import('./check.ts')).benchCheck(sizes),
  fairness: async () => (await import('./fairness.ts')).benchFairness(),
  fleet: async (sizes) => (await import('./fleet.ts')).benchFleet(sizes),
  firewall: async () => (await import('./firewall.ts')).benchFirewall(),
  ipam: async () => (await import('./ipam.ts')).benchIpam(),
  functions: async () => (await import('./functions.ts')).benchFunctions(),
  memory: async () => (await import('./memory.ts')).benchMemory(),
  rate: async () => (await import('./rate.ts')).benchRate(),
  rest: async () => (await import('./rest.ts')).benchRest(),
  restart: async () => (await import('./restart.ts')).benchRestart(),
  start: async () => (await import('./start.ts')).benchStart(),
};

const isNumber = (word: string): boolean => /^\d+$/.test(word);
const names = process.argv.slice(2).filter((word) => !isNumber(word));
const numbers = process.argv.slice(2).filter(isNumber).map(Number);
const chosen = names.length === 0 ? Object.keys(BENCHES) : names;
const unknown = chosen.filter((name) => !Object.hasOwn(BENCHES, name));
if (unknown.length > 0) {
  process.stderr.write(
    `unknown: ${unknown.join(', ')}; known: ${Object.keys(BENCHES).join(', ')}\n`,
  );
  process.exit(64);
}
enterSandbox();
for (const name of chosen) await BENCHES[name]?.(numbers);
process.exit(0);
