import { type Subjects, subjects } from '#protocol/subjects.ts';
import type { NetworkNews } from '#ipam-store/ledger.ts';

/** What rings within this time rings once. */
const GATHER_MS = 20;

export interface NetworkNoticesOptions {
  readonly subjectPrefix: string;
  /** Publishes a message without content. */
  readonly publish: (subject: string) => void;
  /** Whether this host has anything in one of these networks. */
  readonly concerns: (networks: ReadonlySet<string>) => boolean;
  /** The definition of one of them may be another. */
  readonly onDefinition: () => void;
  /** Something of these networks may be another. */
  readonly onChange: (networks: ReadonlySet<string>) => void;
}

/**
 * Says on NATS which networks this agent has changed something of, so that those whom it concerns look at once, and hears
 * it of others. Nothing relies on it: who misses it finds out with his next heartbeat, and who rings for nothing costs a
 * heartbeat.
 */
export class NetworkNotices {
  readonly #options: NetworkNoticesOptions;
  readonly #subjects: Subjects;
  readonly #gathered = new Set<string>();
  readonly #heard = new Set<string>();
  readonly #redefined = new Set<string>();

  constructor(options: NetworkNoticesOptions) {
    this.#options = options;
    this.#subjects = subjects(options.subjectPrefix);
  }

  /** What is always to be heard; doorbells of leases where a network is followed. */
  get subject(): string {
    return this.#subjects.changed('*', 'definition');
  }

  ring({ network, change }: NetworkNews): void {
    if (this.#gathered.size === 0) setTimeout(() => this.#ring(), GATHER_MS).unref();
    this.#gathered.add(this.#subjects.changed(network, change));
  }

  #ring(): void {
    const gathered = [...this.#gathered];
    this.#gathered.clear();
    for (const subject of gathered) this.#options.publish(subject);
  }

  hear(subject: string): void {
    const said = this.#subjects.match(subject);
    if (said?.kind !== 'changed') return;
    if (this.#heard.size === 0) setTimeout(() => this.#answer(), GATHER_MS).unref();
    this.#heard.add(said.network);
    if (said.change === 'definition') this.#redefined.add(said.network);
  }

  #answer(): void {
    const [heard, redefined] = [new Set(this.#heard), new Set(this.#redefined)];
    this.#heard.clear();
    this.#redefined.clear();
    const { concerns, onDefinition, onChange } = this.#options;
    onChange(heard);
    if (concerns(redefined)) onDefinition();
  }
}
