import type { Redis } from 'ioredis';
import { decodeAnswer, encodeAnswer, MAX_ANSWER_BYTES } from '#protocol/envelope.ts';
import { type LedgerCheckAnswer, ledgerCheckAnswerSchema } from '#protocol/ledger.ts';
import { FleetCheck } from '#agent/fleet/fleet-check.ts';
import { Slices } from '#agent/schedule/slices.ts';
import { sideOf } from './functions-acquire.ts';

const CALLERS = 8;
const LEASES_PER_HOST = 100;
const NETWORKS = 500;
const TOLD_MS = 20_000;
const LATER_MS = 600_000;

/**
 * A check of a whole ledger, asked for by eight at once; `npm run bench -- check [hosts]`. The hosts, whose own checks
 * are not what is measured, find themselves in order.
 */
export async function benchCheck([hosts = 10_000]: readonly number[]): Promise<void> {
  const side = await sideOf({ hosts, leasesPerHost: LEASES_PER_HOST, networks: NETWORKS });
  const { ledger, raw } = side;
  const check = new FleetCheck({
    ledger,
    bus: () => ({ request: async () => encodeAnswer({ inSync: true, differences: [] }) }),
    subjectPrefix: 'volt.net',
    slices: new Slices(),
    answerBytes: () => MAX_ANSWER_BYTES,
  });
  try {
    await raw.config('RESETSTAT');
    const before = await cpuSecondsOf(raw);
    const started = performance.now();
    const seconds = (): number => (performance.now() - started) / 1_000;
    const callers = Array.from({ length: CALLERS }, (_, n) =>
      stepByStep(check, n === 0 ? seconds : undefined),
    );
    const answers = await Promise.all(callers);
    const took = seconds();
    const cpu = (await cpuSecondsOf(raw)) - before;
    const stats = await raw.info('commandstats');
    const [, calls, us] = /^cmdstat_fcall:calls=(\d+),usec=(\d+)/m.exec(stats) ?? [];
    const share = (part: number): string => `${((100 * part) / took).toFixed(1)} %`;
    const functions = Number(us) / 1e6;
    const differences = answers.map((all) => all.flatMap((one) => one.differences).length);
    const areSame = differences.every((count) => count === differences[0]);
    process.stdout.write(
      `\n  ${hosts * LEASES_PER_HOST} leases: ${took.toFixed(0)} s; in functions ${functions.toFixed(1)} s` +
        ` (${share(functions)}), Redis's thread ${cpu.toFixed(1)} s (${share(cpu)}), ${calls ?? 0} calls\n` +
        `  ${CALLERS} callers: ${answers.map(({ length }) => length).join(' ')} answers;` +
        ` differences ${differences.join(' ')}${areSame ? '' : ', which differ'}\n`,
    );
  } finally {
    await side.close();
  }
}

/** Asks again from where the answer before ended, and tells how far it is. */
async function stepByStep(check: FleetCheck, seconds?: () => number): Promise<LedgerCheckAnswer[]> {
  const answers: LedgerCheckAnswer[] = [];
  let told = 0;
  let cursor: string | undefined;
  do {
    const { bytes } = await check.check({ cursor }, performance.now() + LATER_MS);
    const answer = ledgerCheckAnswerSchema.parse(decodeAnswer(bytes));
    answers.push(answer);
    ({ cursor } = answer);
    if (seconds === undefined || seconds() * 1_000 < told) continue;
    told += TOLD_MS;
    process.stdout.write(`  ${seconds().toFixed(0).padStart(5)} s  ${answer.progress ?? 'done'}\n`);
  } while (cursor !== undefined);
  return answers;
}

async function cpuSecondsOf(raw: Redis): Promise<number> {
  const text = await raw.info('cpu');
  const times = text.matchAll(/^used_cpu_(?:sys|user)_main_thread:([\d.]+)/gm);
  return [...times].reduce((sum, [, seconds]) => sum + Number(seconds), 0);
}
