import { encodeAnswer, EncodedAnswer, encodePage, MAX_ANSWER_BYTES } from '#protocol/envelope.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Slices } from '../schedule/slices.ts';

/** Of an answer to a list. */
export const LIST_LIMIT = 1_000;
/** For the headers of an answer with an error: they count as part of the message. */
const HEADER_BYTES = 256;
/** For the map around the elements of a page, and for its cursor. */
const AROUND_BYTES = 1_024;
/** For the parts of an answer to a change that its request does not have. */
const CHANGE_BYTES = 4_096;
/** Elements differ in size, so the next page is smaller than the ratio says. */
const MARGIN = 0.8;

/** The largest answer if the server takes messages of `maxPayload` bytes. */
export const answerBytes = (maxPayload: number): number =>
  Math.min(MAX_ANSWER_BYTES, maxPayload - HEADER_BYTES);

/** Of what has to be in one message. */
const tooLarge = (
  what: string,
  { bytes, limit, ...details }: { bytes: number; limit: number; done?: true },
): VoltError =>
  new VoltError(
    'TOO_LARGE',
    `${what} has ${bytes} bytes, more than the ${limit} that fit here: raise max_payload of nats-server`,
    { details: { bytes, limit, ...details } },
  );

/** Refuses a change, before it is done, whose answer may not fit: the answer repeats the request. */
export function refuseLargeChange({ byteLength: bytes }: Uint8Array, mostOfAnswer: number): void {
  const limit = mostOfAnswer - CHANGE_BYTES;
  if (bytes > limit) throw tooLarge('the request', { bytes, limit });
}

/** Throws TOO_LARGE. `done`: the change was done all the same, and the message says so. */
export function refuseLargeAnswer(
  name: string,
  { byteLength: bytes }: Uint8Array,
  { limit, done }: { limit: number; done: boolean },
): void {
  if (bytes <= limit) return;
  const what = done ? `${name} was done, but its answer` : `the answer to ${name}`;
  throw tooLarge(what, { bytes, limit, ...(done && { done }) });
}

/** The elements of one page of an answer: as many as fit. */
export class AnswerPage {
  readonly #limit: number;
  readonly #room: number;
  readonly #elements: Uint8Array[] = [];
  #bytes = 0;

  /**
   * At most `limit` elements. The whole answer has at most `bytes`, of which `reserved` are for the parts beside
   * them.
   */
  constructor({ limit, bytes, reserved = 0 }: { limit: number; bytes: number; reserved?: number }) {
    this.#limit = limit;
    this.#room = bytes - AROUND_BYTES - reserved;
  }

  /** How many more it may take. */
  get left(): number {
    return this.#limit - this.#elements.length;
  }

  /** False if there is no room for the element. Throws TOO_LARGE if it does not even fit on a page of its own. */
  add(id: string, element: object): boolean {
    if (this.left === 0) return false;
    const encoded = encodeAnswer(element);
    const bytes = encoded.byteLength;
    if (this.#bytes + bytes > this.#room) {
      if (this.#elements.length === 0) throw tooLarge(id, { bytes, limit: this.#room });
      return false;
    }
    this.#bytes += bytes;
    this.#elements.push(encoded);
    return true;
  }

  encoded(key: string, rest: Readonly<Record<string, unknown>>): EncodedAnswer {
    return encodePage(key, this.#elements, rest);
  }
}

/**
 * A page that the ledger cuts, as an answer of at most `bytes`. If it is larger, the ledger is asked for fewer
 * elements. A single element that is too large is answered as it is.
 */
export async function ledgerPage(
  { limit, bytes, slices }: { limit: number | undefined; bytes: number; slices: Slices },
  ask: (limit: number | undefined) => Promise<{ answer: object; elements: number }>,
): Promise<EncodedAnswer> {
  for (let most = limit; ;) {
    const { answer, elements } = await ask(most);
    const encoded = await slices.once(() => encodeAnswer(answer));
    if (encoded.byteLength <= bytes || elements <= 1) return new EncodedAnswer(encoded);
    most = Math.max(1, Math.floor(((elements * bytes) / encoded.byteLength) * MARGIN));
  }
}
