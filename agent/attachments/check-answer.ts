import type { CheckAnswer, Difference } from '#protocol/attachment.ts';
import { encodeAnswer } from '#protocol/envelope.ts';
import { VoltError } from '#protocol/errors.ts';
import { redacted } from '#protocol/secrets.ts';
import type { Steps } from '#native/steps.ts';
import type { Plan } from '../host/reconcile/plan.ts';

// The answer to `check`, also when the ledger could not be compared.

/** Shares of the bytes of an answer, which is encoded in one step. */
const DIFFERENCES_SHARE = 1 / 2;
const PLAN_SHARE = 1 / 4;

/** Errors that mean that the ledger cannot be asked now. The request itself is valid. */
const LEDGER_AWAY: ReadonlySet<string> = new Set([
  'STORE_UNAVAILABLE',
  'STORE_VERSION',
  'RECOVERING',
]);

type Asked<T> =
  | { readonly told: T; readonly away?: undefined }
  | { readonly told?: undefined; readonly away: VoltError };

/** The answer of the ledger, or why it cannot be asked now. */
export async function askedOfLedger<T>(ask: () => Promise<T>): Promise<Asked<T>> {
  try {
    return { told: await ask() };
  } catch (error) {
    if (error instanceof VoltError && LEDGER_AWAY.has(error.code)) return { away: error };
    throw error;
  }
}

/** The answer, cut to `mostBytes`. `away`: why the ledger was not compared. */
export function* answerOf({
  differences,
  plan: { actions },
  away,
  mostBytes,
}: {
  readonly differences: readonly Difference[];
  readonly plan: Plan;
  readonly away: VoltError | undefined;
  readonly mostBytes: number;
}): Steps<CheckAnswer> {
  const planned = actions.map(({ id, kind, differences: why }) => ({
    id,
    action: kind,
    reason: why.map(({ what }) => what).join(', '),
  }));
  const told = yield* within(mostBytes * DIFFERENCES_SHARE, differences);
  const plan = yield* within(mostBytes * PLAN_SHARE, planned);
  const notCompared = away && [
    { what: 'ledger', code: away.code, message: redacted(away.message) },
  ];
  const inSync = differences.length + planned.length === 0 && away === undefined;
  const truncated = told.length < differences.length || plan.length < planned.length;
  return {
    inSync,
    differences: told,
    plan,
    ...(notCompared !== undefined && { notCompared }),
    ...(truncated && { truncated }),
  };
}

/** The first items, as many as fit into `most` bytes. */
function* within<T>(most: number, all: readonly T[]): Steps<T[]> {
  const held: T[] = [];
  let bytes = 0;
  for (const one of all) {
    yield;
    bytes += encodeAnswer(one).byteLength;
    if (bytes > most) return held;
    held.push(one);
  }
  return held;
}
