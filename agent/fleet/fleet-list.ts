import { setTimeout as sleep } from 'node:timers/promises';
import type { FleetAttachment, FleetListAnswer, FleetListRequest } from '#protocol/attachment.ts';
import { encodeAnswer, type EncodedAnswer } from '#protocol/envelope.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Follower } from '#ipam-store/follower.ts';
import type { Lease, Ledger } from '#ipam-store/ledger.ts';
import type { Steps } from '#native/steps.ts';
import { AnswerPage, LIST_LIMIT } from '../bus/answer-size.ts';
import { toVoltError } from '../errors.ts';
import type { Followers } from './followers.ts';
import { nobodyWaits, type Slices } from '../schedule/slices.ts';
import type { LedgerWatermark } from './ledger-watermark.ts';

/** A page ends after this time, so that its caller has an answer while networks are read for the first time. */
const PAGE_MS = 1_000;
/** What of a deadline is left for the answer. */
const ANSWER_MS = 250;
/** Of a page, for networks that are behind. */
const BEHIND_SHARE = 1 / 4;

export interface FleetListOptions {
  readonly ledger: Pick<Ledger, 'networkChanges'>;
  readonly watermark: LedgerWatermark;
  readonly followers: Pick<Followers, 'of'>;
  /** Sends a heartbeat, whose answer brings the watermark up to date. */
  readonly beat: () => Promise<void>;
  readonly heartbeatSeconds: number;
  readonly slices: Slices;
  /** The most that an answer may have now. */
  readonly answerBytes: () => number;
}

type Behind = FleetListAnswer['behind'][number];

/**
 * Everything that is attached in the fleet, in the order of networks and ids, read from followers. What it shows is
 * at most a heartbeat's period old; otherwise `behind` says since when, and why. It leaves out no network: if nothing
 * is known of one, the list fails with the error of the ledger.
 */
export class FleetList {
  readonly #options: FleetListOptions;

  constructor(options: FleetListOptions) {
    this.#options = options;
  }

  /** One page, `FleetListAnswer`. */
  async list(request: FleetListRequest, deadline: number): Promise<EncodedAnswer> {
    const { followers, slices, answerBytes } = this.#options;
    const [first = '', after = ''] = request.cursor?.split('/') ?? [];
    const page = new Page(Math.min(request.limit ?? LIST_LIMIT, LIST_LIMIT), answerBytes());
    const until = Math.min(performance.now() + PAGE_MS, deadline - ANSWER_MS);
    const networks = await this.#networks(request, deadline - ANSWER_MS);
    let looked = 0;
    for (const network of networks) {
      if (network < first) continue;
      if (looked > 0 && performance.now() > until) return page.encoded(`${network}/`);
      looked += 1;
      const follower = followers.of(network);
      const behind = await this.#bring(follower, deadline - ANSWER_MS);
      if (behind !== undefined && !page.addBehind(behind)) return page.encoded(`${network}/`);
      const wanted = { ...request, after: network === first ? after : '', most: page.left + 1 };
      const filled = await slices.run(page.fill(firstOf(follower.leases, wanted)), { deadline });
      if (!filled) return page.encoded(page.last);
    }
    return page.encoded();
  }

  /** The names of the networks in order; for a first page as the ledger has them now. */
  async #networks(
    { network, cursor }: FleetListRequest,
    deadline: number,
  ): Promise<readonly string[]> {
    if (network !== undefined) return [network];
    const { ledger, watermark, beat } = this.#options;
    if (cursor === undefined) {
      try {
        const { whole, changed, gone } = await ledger.networkChanges(watermark.networksRevision);
        if (whole || changed.length + gone.length > 0) await within(deadline, beat());
        if (changed.length > 0 && watermark.networks.length === 0) {
          throw new VoltError('RECOVERING', 'the networks of the ledger were not read yet');
        }
      } catch (error) {
        if (watermark.networks.length === 0) throw error;
      }
    }
    return watermark.networks.map((one) => one.network.network).toSorted();
  }

  /**
   * Resolves when the follower shows what is true now, or with the reason why it does not. Throws that reason if the
   * follower knows nothing.
   */
  async #bring(follower: Follower, deadline: number): Promise<Behind | undefined> {
    const { network, asOf = -Infinity } = follower;
    const isFresh = performance.now() - asOf < this.#options.heartbeatSeconds * 1_000;
    if (isFresh && follower.problem === undefined) return undefined;
    try {
      await within(deadline, follower.caughtUp());
      return undefined;
    } catch (error) {
      if (follower.asOf === undefined) throw error;
      const { code, message } = toVoltError(error);
      const asOfMs = Date.now() - (performance.now() - follower.asOf);
      return { network, asOf: new Date(asOfMs).toISOString(), code, message };
    }
  }
}

async function within(deadline: number, work: Promise<void>): Promise<void> {
  const done = new AbortController();
  const late = sleep(Math.max(0, deadline - performance.now()), true, done).catch(() => false);
  try {
    if ((await Promise.race([work, late])) === true) throw nobodyWaits();
  } finally {
    done.abort();
  }
}

/** As many as an answer holds. */
class Page {
  readonly #attachments: AnswerPage;
  readonly #behind: Behind[] = [];
  readonly #behindRoom: number;
  #behindBytes = 0;
  /** The cursor behind the last one. */
  last: string | undefined;

  constructor(limit: number, bytes: number) {
    this.#behindRoom = bytes * BEHIND_SHARE;
    this.#attachments = new AnswerPage({ limit, bytes, reserved: this.#behindRoom });
  }

  get left(): number {
    return this.#attachments.left;
  }

  /** False where there is no room for all. */
  *fill(leases: Steps<readonly Lease[]>): Steps<boolean> {
    for (const lease of yield* leases) {
      yield;
      if (!this.#add(lease)) return false;
    }
    return true;
  }

  #add({ bootId: _bootId, ...lease }: Lease): boolean {
    const attachment: FleetAttachment = { ...lease, addresses: [...lease.addresses] };
    if (!this.#attachments.add(lease.id, attachment)) return false;
    this.last = `${lease.network}/${lease.id}`;
    return true;
  }

  addBehind(behind: Behind): boolean {
    this.#behindBytes += encodeAnswer(behind).byteLength;
    if (this.#behindBytes > this.#behindRoom) return false;
    this.#behind.push(behind);
    return true;
  }

  encoded(cursor?: string): EncodedAnswer {
    return this.#attachments.encoded('attachments', { behind: this.#behind, cursor });
  }
}

interface Wanted extends Pick<FleetListRequest, 'workload' | 'kind'> {
  readonly after: string;
  readonly most: number;
}

/** The first attachments in the order of their ids, with a pause after each: a network may have very many. */
function* firstOf(
  leases: ReadonlyMap<string, Lease>,
  { after, workload, kind, most }: Wanted,
): Steps<readonly Lease[]> {
  // By id: an attachment that is replaced meanwhile may come again.
  let found = new Map<string, Lease>();
  let last: string | undefined;
  const cut = (): Lease[] => {
    const kept = [...found.values()].toSorted((one, other) => (one.id < other.id ? -1 : 1));
    return kept.slice(0, most);
  };
  for (const lease of leases.values()) {
    yield;
    const isWanted =
      lease.id > after &&
      (last === undefined || lease.id <= last) &&
      (workload === undefined || lease.workload === workload) &&
      (kind === undefined || lease.kind === kind);
    if (!isWanted) continue;
    found.set(lease.id, lease);
    if (found.size < 2 * most) continue;
    const kept = cut();
    last = kept.at(-1)?.id;
    found = new Map(kept.map((one) => [one.id, one]));
  }
  return cut();
}
