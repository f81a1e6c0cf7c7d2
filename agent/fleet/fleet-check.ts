import type { CheckAnswer, Difference } from '#protocol/attachment.ts';
import { decodeAnswer, encode, encodeAnswer, EncodedAnswer } from '#protocol/envelope.ts';
import { VoltError } from '#protocol/errors.ts';
import {
  type LedgerCheckAnswer,
  type LedgerCheckPosition,
  ledgerCheckPositionSchema,
  type LedgerDifference,
} from '#protocol/ledger.ts';
import { IS_ANSWER } from '#protocol/outlines.ts';
import { subjects } from '#protocol/subjects.ts';
import {
  type AuditPosition,
  auditProgress,
  type HostRecord,
  type Ledger,
} from '#ipam-store/ledger.ts';
import type { Steps } from '#native/steps.ts';
import type { Bus } from '../bus/bus.ts';
import { SharedRun } from '../schedule/shared-run.ts';
import { nobodyWaits, type Slices } from '../schedule/slices.ts';

// The rest of an answer is for hosts of the last page, and for the cursor.
const FOUND_SHARE = 1 / 2;
const HOSTS_AT_ONCE = 16;
/**
 * The time for one answer. Whoever asks goes on from its cursor if he still wants to, and hears how far the check is.
 */
const RUN_MS = 3_000;
/** Less than a caller waits by default. A host with very many attachments and much to do takes some seconds. */
const HOST_TIMEOUT_MS = 8_000;

/**
 * Compares the ledger with itself, and with the records and the kernel of every host that lives. Repairs only what is
 * proven: by a lease, by the lack of one, or by a host that says twice that it has neither record nor device of a
 * lease of its own. Whoever asks for the same check while one is under way shares the next answer.
 */
export class FleetCheck {
  readonly #ledger: Ledger;
  readonly #bus: () => Pick<Bus, 'request'>;
  readonly #runMs: number;
  readonly #subjectPrefix: string;
  readonly #slices: Slices;
  readonly #answerBytes: () => number;
  readonly #shared = new SharedRun<string, EncodedAnswer>((key, signal) =>
    this.#check(askOf(key), signal),
  );

  /** `runMs`: after this time the check answers how far it is. */
  constructor(options: {
    ledger: Ledger;
    bus: () => Pick<Bus, 'request'>;
    subjectPrefix: string;
    slices: Slices;
    /** The most that an answer may have now. */
    answerBytes: () => number;
    runMs?: number;
  }) {
    this.#runMs = options.runMs ?? RUN_MS;
    this.#ledger = options.ledger;
    this.#bus = options.bus;
    this.#subjectPrefix = options.subjectPrefix;
    this.#slices = options.slices;
    this.#answerBytes = options.answerBytes;
  }

  /**
   * A `LedgerCheckAnswer`, with a cursor if there is more to check than one run may take. DEADLINE_EXCEEDED if there
   * is no answer by `deadline` (`performance.now()` time). INVALID_REQUEST for a cursor that no answer had.
   */
  async check(
    { repair = false, cursor }: { repair?: boolean | undefined; cursor?: string | undefined },
    deadline: number,
  ): Promise<EncodedAnswer> {
    if (cursor !== undefined) positionOf(cursor);
    return this.#shared.ask(`${repair ? 'repair' : 'look'} ${cursor ?? ''}`, deadline);
  }

  async #check({ repair, from }: Ask, signal: AbortSignal): Promise<EncodedAnswer> {
    const found = new Found(this.#answerBytes());
    const end = performance.now() + this.#runMs;
    const next =
      (from.ledger &&
        (await this.#compareLedger(found, { repair, from: from.ledger }, end, signal))) ??
      (await this.#compareHosts(found, { repair, from: from.hosts ?? '' }, end, signal));
    const answer: LedgerCheckAnswer = { ...found.answer(), ...(next && partOf(next)) };
    return this.#slices.once(() => new EncodedAnswer(encodeAnswer(answer)));
  }

  /** Answers where it stopped; undefined at the end. */
  async #compareLedger(
    found: Found,
    { repair, from }: { repair: boolean; from: AuditPosition },
    end: number,
    signal: AbortSignal,
  ): Promise<LedgerCheckPosition | undefined> {
    try {
      for await (const { differences, next } of this.#ledger.auditPages(from, signal)) {
        for (const difference of differences) {
          if (signal.aborted) throw nobodyWaits();
          const { id, what, address, mac } = difference;
          const expected = what.endsWith('missing') ? (address ?? mac ?? id) : null;
          const observed = what.endsWith('missing') ? null : (address ?? mac ?? id);
          const repaired = repair && (await done(this.#ledger.repair(difference)));
          found.add({ id, what: `ledger ${what}`, expected, observed, repaired });
        }
        if (performance.now() > end || found.isFull) return { ledger: next };
      }
    } catch (error) {
      throw signal.aborted ? nobodyWaits() : error;
    }
    return undefined;
  }

  /** Checks every host that lives, some at once, in the order of their names. */
  async #compareHosts(
    found: Found,
    { repair, from }: { repair: boolean; from: string },
    end: number,
    signal: AbortSignal,
  ): Promise<LedgerCheckPosition | undefined> {
    let cursor = from === '' ? undefined : from;
    do {
      if (signal.aborted) throw nobodyWaits();
      const page = await this.#ledger.listHosts({ cursor, limit: HOSTS_AT_ONCE });
      const live = page.hosts.filter(({ state }) => state === 'live');
      for (const one of page.hosts) if (!live.includes(one)) found.addHost('silent', one.host);
      const answers = await Promise.all(live.map(async ({ host }) => this.#ask(host)));
      for (const [index, host] of live.entries()) {
        const answer = answers[index];
        if (answer === undefined || answer === null) {
          found.addHost('silent', host.host);
          continue;
        }
        found.addHost('checked', host.host);
        const { differences } = answer;
        const leaked = new Set(repair ? await this.#release(host, differences, signal) : []);
        if (answer.truncated === true) found.cut();
        await this.#slices.run(found.addOf(host.host, differences, leaked), { signal });
      }
      ({ cursor } = page);
      if (cursor !== undefined && (performance.now() > end || found.isFull))
        return { hosts: cursor };
    } while (cursor !== undefined);
    return undefined;
  }

  /** The differences that a host finds; null if the host does not answer. */
  async #ask(host: string): Promise<CheckAnswer | null> {
    const subject = subjects(this.#subjectPrefix).host(host, 'check');
    try {
      const reply = await this.#bus().request(subject, encode({}), HOST_TIMEOUT_MS);
      const answer = decodeAnswer(reply);
      // A host that could not ask the ledger has not compared anything with it.
      return IS_ANSWER.check(answer) && answer.notCompared === undefined ? answer : null;
    } catch {
      return null;
    }
  }

  /**
   * Ends leases of which their host has neither record nor device, if the host says so again, and of this very
   * generation. A lease of an earlier boot is kept on purpose (`onReboot`): only its owner knows. Answers what it
   * ended.
   */
  async #release(
    { host, machineId, agentId, bootId }: HostRecord,
    differences: readonly Difference[],
    signal: AbortSignal,
  ): Promise<Difference[]> {
    const leaked = differences.filter((one) => generationOfLeaked(one) !== undefined);
    if (leaked.length === 0 || machineId === undefined) return [];
    const again = new Map<string, number | undefined>();
    for (const one of (await this.#ask(host))?.differences ?? []) {
      if (one.what === 'record') again.set(one.id, generationOfLeaked(one));
    }
    const ended: Difference[] = [];
    for (const one of leaked) {
      if (signal.aborted) throw nobodyWaits();
      const { id } = one;
      const generation = generationOfLeaked(one);
      if (generation === undefined || again.get(id) !== generation) continue;
      const lease = await this.#ledger.getLease(id).catch(() => null);
      if (lease?.generation !== generation || lease.bootId !== bootId) continue;
      // In the name of the machine that was asked: meanwhile another machine may have the host id.
      const releasing = this.#ledger.release({
        ...{ id, generation, host, machineId, agentId, bootId },
        cool: true,
      });
      if (await done(releasing.then((outcome) => outcome === 'released'))) ended.push(one);
    }
    return ended;
  }
}

const START: LedgerCheckPosition = { ledger: { stage: 0 } };

interface Ask {
  readonly repair: boolean;
  readonly from: LedgerCheckPosition;
}

/** Parses the key that callers of the same check share: `look` or `repair`, and the cursor after a space. */
function askOf(key: string): Ask {
  const [what, cursor = ''] = key.split(/ (.*)/s);
  return { repair: what === 'repair', from: cursor === '' ? START : positionOf(cursor) };
}

function positionOf(cursor: string): LedgerCheckPosition {
  try {
    return ledgerCheckPositionSchema.parse(JSON.parse(cursor));
  } catch (cause) {
    const details = { path: 'cursor' };
    throw new VoltError('INVALID_REQUEST', 'cursor: no answer ended with it', { details, cause });
  }
}

/** What the answer of an unfinished check says beside what it found. */
function partOf(
  next: LedgerCheckPosition,
): Pick<LedgerCheckAnswer, 'inSync' | 'cursor' | 'progress'> {
  const { ledger, hosts } = next;
  const progress =
    ledger === undefined
      ? `records and kernels of hosts up to ${hosts ?? ''}`
      : auditProgress(ledger);
  return { inSync: false, cursor: JSON.stringify(next), progress };
}

/** The generation of a lease of which its host has neither record nor device; undefined for any other difference. */
function generationOfLeaked({ what, observed }: Difference): number | undefined {
  if (what !== 'record' || typeof observed !== 'object' || observed === null) return undefined;
  if (!('device' in observed) || observed.device !== null || !('generation' in observed))
    return undefined;
  return typeof observed.generation === 'number' ? observed.generation : undefined;
}

/** If the ledger refuses a repair, the check still answers all that it found. */
const done = (repairing: Promise<boolean>): Promise<boolean> =>
  repairing.catch((error: unknown) => {
    if (error instanceof VoltError) return false;
    throw error;
  });

/** As many differences and names of hosts as an answer holds. */
class Found {
  readonly #differences: LedgerDifference[] = [];
  /** The hosts whose records and kernels were compared, and those whose were not. */
  readonly #hosts: Record<'checked' | 'silent', string[]> = { checked: [], silent: [] };
  readonly #answerBytes: number;
  #bytes = 0;
  #inSync = true;
  #truncated = false;

  constructor(answerBytes: number) {
    this.#answerBytes = answerBytes;
  }

  addHost(which: 'checked' | 'silent', host: string): void {
    this.#bytes += encodeAnswer(host).byteLength;
    this.#hosts[which].push(host);
  }

  add(difference: LedgerDifference): void {
    this.#inSync &&= difference.repaired;
    this.#bytes += encodeAnswer(difference).byteLength;
    if (this.#bytes <= this.#answerBytes * FOUND_SHARE) this.#differences.push(difference);
    else this.#truncated = true;
  }

  /** True when nothing more may be checked before this is answered. */
  get isFull(): boolean {
    return this.#bytes > (this.#answerBytes * FOUND_SHARE) / 2;
  }

  /** There is more, that nobody has told. */
  cut(): void {
    this.#inSync = false;
    this.#truncated = true;
  }

  /** The differences that a host has found, with a pause after each. */
  *addOf(
    host: string,
    differences: readonly Difference[],
    repaired: ReadonlySet<Difference>,
  ): Steps<void> {
    for (const difference of differences) {
      yield;
      this.add({ ...difference, host, repaired: repaired.has(difference) });
    }
  }

  answer(): LedgerCheckAnswer {
    return {
      inSync: this.#inSync,
      differences: this.#differences,
      ...this.#hosts,
      truncated: this.#truncated,
    };
  }
}
