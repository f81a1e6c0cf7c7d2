import { type Subjects, subjects } from '#protocol/subjects.ts';
import type { NetworkNews } from '#ipam-store/ledger.ts';

/** Notices of the same subject within this time become one. */
const GATHER_MS = 20;

export interface NetworkNoticesOptions {
  readonly subjectPrefix: string;
  /** Publishes a message without content. */
  readonly publish: (subject: string) => void;
  /** Whether this host has anything in one of these networks. */
  readonly concerns: (networks: ReadonlySet<string>) => boolean;
  /** The definition of one of these networks may have changed. */
  readonly onDefinition: () => void;
  /** Something of these networks may be another. */
  readonly onChange: (networks: ReadonlySet<string>) => void;
}

/**
 * Publishes notices on NATS of the networks that this agent has changed, so that other hosts look at once, and hears
 * the notices of others. Nobody relies on them: a host that misses one learns of the change with its next heartbeat,
 * and a needless notice costs one heartbeat.
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

  /** The subject that every agent listens on. Notices of leases are heard only while a network is followed. */
  get subject(): string {
    return this.#subjects.changed('*', 'definition');
  }

  add({ network, change }: NetworkNews): void {
    if (this.#gathered.size === 0) setTimeout(() => this.#publish(), GATHER_MS).unref();
    this.#gathered.add(this.#subjects.changed(network, change));
  }

  #publish(): void {
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
