import type { CheckAnswer, Difference } from '#protocol/attachment.ts';
import {
  decodeAnswer,
  encode,
  encodeAnswer,
  EncodedAnswer,
  MAX_ANSWER_BYTES,
} from '#protocol/envelope.ts';
import { VoltError } from '#protocol/errors.ts';
import type { LedgerCheckAnswer, LedgerDifference } from '#protocol/ledger.ts';
import { IS_ANSWER } from '#protocol/outlines.ts';
import { subjects } from '#protocol/subjects.ts';
import type { HostRecord, Ledger } from '#ipam-store/ledger.ts';
import type { Steps } from '#native/steps.ts';
import type { Bus } from './bus.ts';
import { Joint } from './joint.ts';
import { nobodyWaits, type Slices } from './slices.ts';

// Half is for the names of hosts.
const DIFFERENCES_BYTES = MAX_ANSWER_BYTES / 2;
const HOSTS_AT_ONCE = 16;
/** Less than who asks waits by default; a host with very many attachments and much to do takes some seconds. */
const HOST_TIMEOUT_MS = 8_000;

/**
 * Compares the ledger with itself, and with the records and the kernel of every host that lives. Repairs nothing
 * but what is proven: what a lease or the lack of one shows, and leases of which their own host says twice that it
 * has neither record nor device. Whoever asks for the same while one is under way shares the next answer.
 */
export class FleetCheck {
  readonly #ledger: Ledger;
  readonly #bus: () => Bus;
  readonly #subjectPrefix: string;
  readonly #slices: Slices;
  readonly #joint = new Joint<'look' | 'repair', EncodedAnswer>((what, signal) =>
    this.#check(what === 'repair', signal),
  );

  constructor(options: { ledger: Ledger; bus: () => Bus; subjectPrefix: string; slices: Slices }) {
    this.#ledger = options.ledger;
    this.#bus = options.bus;
    this.#subjectPrefix = options.subjectPrefix;
    this.#slices = options.slices;
  }

  /** A `LedgerCheckAnswer`; DEADLINE_EXCEEDED where there is none by then (`performance.now()` time). */
  check({ repair }: { repair: boolean }, deadline: number): Promise<EncodedAnswer> {
    return this.#joint.ask(repair ? 'repair' : 'look', deadline);
  }

  async #check(repair: boolean, signal: AbortSignal): Promise<EncodedAnswer> {
    const found = new Found();
    for await (const difference of this.#ledger.audit()) {
      if (signal.aborted) throw nobodyWaits();
      const { id, what, address, mac } = difference;
      const expected = what.endsWith('missing') ? (address ?? mac ?? id) : null;
      const observed = what.endsWith('missing') ? null : (address ?? mac ?? id);
      const repaired = repair && (await done(this.#ledger.repair(difference)));
      found.add({ id, what: `ledger ${what}`, expected, observed, repaired });
    }
    const { live, others } = await this.#hosts();
    const checked: string[] = [];
    const silent = [...others];
    for (let from = 0; from < live.length; from += HOSTS_AT_ONCE) {
      if (signal.aborted) throw nobodyWaits();
      const some = live.slice(from, from + HOSTS_AT_ONCE);
      const answers = await Promise.all(some.map(async ({ host }) => this.#ask(host)));
      for (const [index, host] of some.entries()) {
        const answer = answers[index];
        if (answer === undefined || answer === null) {
          silent.push(host.host);
          continue;
        }
        checked.push(host.host);
        const { differences } = answer;
        const leaked = new Set(repair ? await this.#release(host, differences, signal) : []);
        if (answer.truncated === true) found.cut();
        await this.#slices.run(found.addOf(host.host, differences, leaked), { signal });
      }
    }
    const answer: LedgerCheckAnswer = { ...found.answer(), checked, silent };
    return this.#slices.once(() => new EncodedAnswer(encodeAnswer(answer)));
  }

  async #hosts(): Promise<{ live: HostRecord[]; others: string[] }> {
    const live: HostRecord[] = [];
    const others: string[] = [];
    let cursor: string | undefined;
    do {
      const page = await this.#ledger.listHosts({ cursor });
      for (const one of page.hosts) {
        if (one.state === 'live') live.push(one);
        else others.push(one.host);
      }
      ({ cursor } = page);
    } while (cursor !== undefined);
    return { live, others };
  }

  /** What a host finds different; null when it does not answer. */
  async #ask(host: string): Promise<CheckAnswer | null> {
    const subject = subjects(this.#subjectPrefix).host(host, 'check');
    try {
      const reply = await this.#bus().request(subject, encode({}), HOST_TIMEOUT_MS);
      const answer = decodeAnswer(reply);
      return IS_ANSWER.check(answer) ? answer : null;
    } catch {
      return null;
    }
  }

  /**
   * Ends leases of which their host has neither record nor device, also when it is asked again, of this very
   * generation. One of an earlier boot is kept on purpose (`onReboot`): only its owner knows. Answers what it ended.
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
      // In the name of the machine that was asked: another may have the host id by now.
      const releasing = this.#ledger.release({
        ...{ id, generation, host, machineId, agentId, bootId },
        cool: true,
      });
      if (await done(releasing.then((outcome) => outcome === 'released'))) ended.push(one);
    }
    return ended;
  }
}

/** The generation of a lease of which its host has neither record nor device; undefined for any other difference. */
function generationOfLeaked({ what, observed }: Difference): number | undefined {
  if (what !== 'record' || typeof observed !== 'object' || observed === null) return undefined;
  if (!('device' in observed) || observed.device !== null || !('generation' in observed))
    return undefined;
  return typeof observed.generation === 'number' ? observed.generation : undefined;
}

/** What the ledger refuses is not repaired; all that was found is answered none the less. */
const done = (repairing: Promise<boolean>): Promise<boolean> =>
  repairing.catch((error: unknown) => {
    if (error instanceof VoltError) return false;
    throw error;
  });

/** As many differences as an answer holds. */
class Found {
  readonly #differences: LedgerDifference[] = [];
  #bytes = 0;
  #inSync = true;
  #truncated = false;

  add(difference: LedgerDifference): void {
    this.#inSync &&= difference.repaired;
    this.#bytes += encodeAnswer(difference).byteLength;
    if (this.#bytes <= DIFFERENCES_BYTES) this.#differences.push(difference);
    else this.#truncated = true;
  }

  /** There is more, that nobody has told. */
  cut(): void {
    this.#inSync = false;
    this.#truncated = true;
  }

  /** What a host has found, with a pause after each. */
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

  answer(): Pick<LedgerCheckAnswer, 'inSync' | 'differences' | 'truncated'> {
    return { inSync: this.#inSync, differences: this.#differences, truncated: this.#truncated };
  }
}
