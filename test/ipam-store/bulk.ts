import { VoltError } from '#protocol/errors.ts';
import {
  type Acquired,
  type Ledger,
  type LeaseRequest,
  type Release,
  RevisionChanged,
} from '#ipam-store/ledger.ts';

/** Requests that are under way at once: Redis answers all of them well within the time of a command. */
const AT_ONCE = 1_024;

/** Each as `acquire` does it, by itself: its lease or its error, at the place of its request. */
export const acquireMany = (
  ledger: Ledger,
  requests: readonly LeaseRequest[],
): Promise<(Acquired | VoltError | RevisionChanged)[]> =>
  inBulk(requests, (request) => ledger.acquire(request));

/** Each as `release` does it, by itself: its outcome or its error, at the place of its request. */
export const releaseMany = (
  ledger: Ledger,
  leases: readonly Release[],
): Promise<('released' | 'absent' | VoltError | RevisionChanged)[]> =>
  inBulk(leases, (lease) => ledger.release(lease));

async function inBulk<Request, Result>(
  requests: readonly Request[],
  run: (request: Request) => Promise<Result>,
): Promise<(Result | VoltError | RevisionChanged)[]> {
  const results: (Result | VoltError | RevisionChanged)[] = [];
  for (let from = 0; from < requests.length; from += AT_ONCE) {
    const some = requests.slice(from, from + AT_ONCE);
    results.push(...(await Promise.all(some.map((request) => run(request).catch(errorOf)))));
  }
  return results;
}

/** Anything else is a mistake of the program, and no result. */
function errorOf(error: unknown): VoltError | RevisionChanged {
  if (error instanceof VoltError || error instanceof RevisionChanged) return error;
  throw error;
}
