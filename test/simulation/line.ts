import { VoltError } from '#protocol/errors.ts';
import { type Clock, type Life, NEVER } from './clock.ts';

/** Does at the ledger what an agent asks, and brings the answer. */
export type Call = <T>(work: () => T) => Promise<T>;

const unavailable = (sent: boolean): VoltError =>
  new VoltError('STORE_UNAVAILABLE', 'Redis: away', { details: { sent } });

/** The network between the agents of a fleet and their ledger. */
export class Lines {
  readonly #clock: Clock;
  /** Machines that do not reach it. */
  readonly away = new Set<string>();
  /** Machines of which nothing is lost. */
  readonly sure = new Set<string>();
  /** Of what is sent so much is lost, half of it on the way back. */
  loss = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /**
   * One connection: there and back in order. What is lost before it is done, and what after, looks the same to the
   * caller.
   */
  connect(place: string, life: Life): Call {
    const { chance, world } = this.#clock;
    const reached = { there: 0, back: 0 };
    const after = (way: 'there' | 'back', of: Life, run: () => void): void => {
      const now = this.#clock.elapsedMs;
      reached[way] = Math.max(reached[way] + 0.2, now + chance.between(0, 4));
      this.#clock.after(reached[way] - now, of, run);
    };
    return (work) => {
      if (life.dead) return NEVER;
      if (this.away.has(place)) return Promise.reject(unavailable(false));
      return new Promise((resolve, reject) => {
        const lost =
          !this.sure.has(place) && chance.happens(this.loss)
            ? chance.pick(['there', 'back'])
            : 'nothing';
        after('there', world, () => {
          let end = (): void => reject(unavailable(true));
          if (lost !== 'there' && !this.away.has(place)) {
            try {
              const result = work();
              if (lost !== 'back') end = () => resolve(result);
            } catch (error) {
              if (lost !== 'back') end = () => reject(error);
            }
          }
          after('back', life, end);
        });
      });
    };
  }
}
