import type { CheckAnswer, Difference } from '#protocol/attachment.ts';
import { decodeAnswer, encode } from '#protocol/envelope.ts';
import type { LedgerCheckAnswer, LedgerDifference } from '#protocol/ledger.ts';
import { IS_ANSWER } from '#protocol/outlines.ts';
import { subjects } from '#protocol/subjects.ts';
import type { Ledger } from '#ipam-store/ledger.ts';
import type { Bus } from './bus.ts';

const MAX_DIFFERENCES = 1_000;
const HOSTS_AT_ONCE = 16;
const HOST_TIMEOUT_MS = 5_000;

/**
 * Compares the ledger with itself, and with the records and the kernel of every host that lives. Repairs nothing
 * but what is proven: what a lease or the lack of one shows, and leases of which their own host says twice that it
 * has neither record nor device.
 */
export class FleetCheck {
  readonly #ledger: Ledger;
  readonly #bus: () => Bus;
  readonly #subjectPrefix: string;

  constructor(options: { ledger: Ledger; bus: () => Bus; subjectPrefix: string }) {
    this.#ledger = options.ledger;
    this.#bus = options.bus;
    this.#subjectPrefix = options.subjectPrefix;
  }

  async check({ repair }: { repair: boolean }): Promise<LedgerCheckAnswer> {
    const found = new Found();
    for await (const difference of this.#ledger.audit()) {
      const { id, what, address, mac } = difference;
      const expected = what.endsWith('missing') ? (address ?? mac ?? id) : null;
      const observed = what.endsWith('missing') ? null : (address ?? mac ?? id);
      const repaired = repair && (await this.#ledger.repair(difference));
      found.add({ id, what: `ledger ${what}`, expected, observed, repaired });
    }
    const { live, others } = await this.#hosts();
    const checked: string[] = [];
    const silent = [...others];
    for (let from = 0; from < live.length; from += HOSTS_AT_ONCE) {
      const some = live.slice(from, from + HOSTS_AT_ONCE);
      const answers = await Promise.all(some.map(async (host) => this.#ask(host)));
      for (const [index, host] of some.entries()) {
        const answer = answers[index];
        if (answer === undefined || answer === null) {
          silent.push(host);
          continue;
        }
        checked.push(host);
        for (const difference of answer.differences) {
          const repaired = repair && (await this.#release(host, difference));
          found.add({ ...difference, host, repaired });
        }
      }
    }
    return { ...found.answer(), checked, silent };
  }

  async #hosts(): Promise<{ live: string[]; others: string[] }> {
    const live: string[] = [];
    const others: string[] = [];
    let cursor: string | undefined;
    do {
      const page = await this.#ledger.listHosts({ cursor });
      for (const { host, state } of page.hosts) (state === 'live' ? live : others).push(host);
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

  /** Ends a lease of which its host has neither record nor device, also when it is asked again. */
  async #release(host: string, difference: Difference): Promise<boolean> {
    const { id } = difference;
    if (!isLeaked(difference)) return false;
    const lease = await this.#ledger.getLease(id);
    if (lease?.host !== host) return false;
    const again = await this.#ask(host);
    const still = again?.differences.some((one) => one.id === id && isLeaked(one));
    if (still !== true) return false;
    const { generation } = lease;
    return (await this.#ledger.release({ id, generation, host, cool: true })) === 'released';
  }
}

/** A lease of which its host has neither record nor device. */
const isLeaked = ({ what, observed }: Difference): boolean =>
  what === 'record' &&
  typeof observed === 'object' &&
  observed !== null &&
  'device' in observed &&
  observed.device === null;

/** As many differences as an answer holds. */
class Found {
  readonly #differences: LedgerDifference[] = [];
  #inSync = true;
  #truncated = false;

  add(difference: LedgerDifference): void {
    this.#inSync &&= difference.repaired;
    if (this.#differences.length < MAX_DIFFERENCES) this.#differences.push(difference);
    else this.#truncated = true;
  }

  answer(): Pick<LedgerCheckAnswer, 'inSync' | 'differences' | 'truncated'> {
    return { inSync: this.#inSync, differences: this.#differences, truncated: this.#truncated };
  }
}
