import { VoltError } from '#protocol/errors.ts';
import { isKernelError } from '#native/errors.ts';
import {
  type DeviceChainChange,
  type ElementChange,
  Nftables,
  NftablesUnavailable,
  type NftTable,
  Unanswered,
} from '#native/nftables.ts';
import { elementTexts } from '#native/nftset.ts';
import type { Log } from '../../log.ts';
import {
  chainsIn,
  deviceChain,
  type NftContent,
  setsIn,
  type TableDifference,
  tableDifferences,
} from './contents.ts';
import { HOST_NAT } from './host-nat.ts';
import { BRIDGE_FILTER, DEVICE_FILTER } from './port-filter.ts';
import {
  type ChainFact,
  type ElementFact,
  type Fact,
  keyOf,
  type Ruleset,
  rulesText,
} from './ruleset.ts';

const RULESETS: readonly Ruleset[] = [BRIDGE_FILTER, DEVICE_FILTER, HOST_NAT];
/** Delay between somebody else's change and the comparison, so that several changes in a row are compared once. */
const LOOK_MS = 200;

/**
 * The agent's own nftables on this host. Rules are loaded once. Each fact belongs to an owner, for example an
 * attachment or a bridge; a change of facts is one transaction. From Linux 6.9 on, the kernel keeps others out of the
 * agent's tables. On older kernels the agent watches its tables, and loads them again when they differ.
 */
export class Firewall implements Disposable {
  readonly #log: Log;
  readonly #exclusive: boolean;
  /** The name of our table in each family. */
  readonly #table: string;
  /** Facts by key (`keyOf`). The kernel has each once. */
  readonly #facts = new Map<string, Fact>();
  /** The keys of each owner's facts. */
  readonly #keys = new Map<string, readonly string[]>();
  /** How many owners a fact has, by its key, where there are several. */
  readonly #shared = new Map<string, number>();
  #nftables: Nftables | undefined;
  #problem: unknown;
  #watch: Disposable | undefined;
  /** Chains with their rules as they were when loaded; undefined where nobody else can change them. */
  #rules: readonly NftContent[] | undefined;
  #look: NodeJS.Timeout | undefined;
  #onRestored: ((differences: readonly TableDifference[]) => void) | undefined;

  /** `exclusive`: false leaves the tables open to others, as kernels before 6.9 do. */
  constructor({ log, table, exclusive = true }: { log: Log; table: string; exclusive?: boolean }) {
    this.#log = log;
    this.#table = table;
    this.#exclusive = exclusive;
  }

  /**
   * Loads the rules and all facts known by now. They replace those of an earlier agent without a gap. If nftables
   * cannot be used, the log says so, and the next attachment that needs the firewall tries again.
   */
  start(): void {
    try {
      this.ready();
    } catch (error) {
      this.#log.error(
        { error: String(error) },
        'nftables cannot be used: attachments that need the firewall are refused',
      );
    }
  }

  /** Why attachments that need the firewall are refused; undefined when nftables works. */
  get problem(): string | undefined {
    const problem = this.#problem;
    if (problem === undefined) return undefined;
    return problem instanceof Error ? problem.message : 'nftables cannot be used';
  }

  /**
   * Loads everything, unless it is loaded. UNSUPPORTED: there is no libnftables or netfilter. KernelError: the kernel
   * refuses the rules or facts.
   */
  ready(): void {
    if (this.#nftables !== undefined && this.#problem === undefined) return;
    try {
      this.#nftables ??= Nftables.open();
      this.#load(this.#nftables);
      this.#problem = undefined;
    } catch (error) {
      this.#problem = error;
      if (!(error instanceof NftablesUnavailable)) throw error;
      throw new VoltError('UNSUPPORTED', error.message, { cause: error });
    }
  }

  /** Deletes the agent's tables from the kernel, when no agent runs on the host any more. */
  unload(): void {
    using nftables = Nftables.open();
    for (const ruleset of RULESETS) nftables.deleteTable(this.#tableOf(ruleset));
  }

  /** Replaces the facts of an owner. Facts that are put before `start` are noted, and `start` loads them. */
  put(owner: string, facts: readonly Fact[]): void {
    this.#exchange(owner, new Map(facts.map((fact) => [keyOf(fact), fact])));
  }

  /** Removes the facts of an owner. Success when it has none. */
  remove(owner: string): void {
    if (this.has(owner)) this.#exchange(owner, NO_FACTS);
  }

  /** The keys (`keyOf`) of an owner's facts. */
  held(owner: string): readonly string[] {
    return this.#keys.get(owner) ?? [];
  }

  has(owner: string): boolean {
    return this.#keys.has(owner);
  }

  /**
   * What our tables should contain: the elements of each set and, where others can change them, the rules of each
   * chain. The rules are those that the kernel listed just after they were loaded.
   */
  expected(): NftContent[] {
    return RULESETS.flatMap((ruleset) => this.#expectedOf(ruleset));
  }

  /**
   * The differences between the kernel and `expected`; reads our tables completely. Empty while nftables cannot be
   * used: see `problem`.
   */
  differences(): TableDifference[] {
    const nftables = this.#nftables;
    if (nftables === undefined || this.#problem !== undefined) return [];
    const found = RULESETS.flatMap((ruleset) => {
      const table = this.#tableOf(ruleset);
      const chains = this.#rules === undefined ? [] : chainsIn(nftables, table);
      return [...chains, ...setsIn(nftables, table, ruleset)];
    });
    return tableDifferences(this.expected(), found);
  }

  /** Loads everything again if others have changed it, or if loading it failed before. */
  restore(): void {
    if (this.#problem !== undefined) this.ready();
    if (this.#nftables === undefined) return;
    if (this.#watch === undefined) return;
    const differences = this.differences();
    if (differences.length === 0) return;
    this.#load(this.#nftables);
    this.#log.warn(
      { differences },
      'somebody else has changed the nftables of this agent: loaded again',
    );
    this.#onRestored?.(differences);
  }

  /** Calls back with the differences whenever `restore` has loaded everything again. */
  onRestored(listener: (differences: readonly TableDifference[]) => void): void {
    this.#onRestored = listener;
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#look);
    this.#watch?.[Symbol.dispose]();
    this.#nftables?.[Symbol.dispose]();
  }

  /** When the kernel refuses, the owner keeps its old facts, so that a repeat tries the same change again. */
  #exchange(owner: string, after: Facts): void {
    const before: Facts = new Map(
      this.held(owner).flatMap((key) => {
        const fact = this.#facts.get(key);
        return fact === undefined ? [] : [[key, fact] as const];
      }),
    );
    const { added, dropped } = this.#note(owner, before, after);
    try {
      this.#apply(added, dropped);
    } catch (error) {
      this.#note(owner, after, before);
      throw error;
    }
  }

  /** Notes the new facts of an owner; answers which of them the kernel has to add and to drop. */
  #note(owner: string, before: Facts, after: Facts): { added: Fact[]; dropped: Fact[] } {
    if (after.size === 0) this.#keys.delete(owner);
    else this.#keys.set(owner, [...after.keys()]);
    const added: Fact[] = [];
    const dropped: Fact[] = [];
    for (const [key, fact] of after) {
      if (before.has(key)) continue;
      if (this.#facts.has(key)) {
        this.#shared.set(key, (this.#shared.get(key) ?? 1) + 1);
      } else {
        this.#facts.set(key, fact);
        added.push(fact);
      }
    }
    for (const [key, fact] of before) {
      if (after.has(key)) continue;
      const owners = this.#shared.get(key) ?? 1;
      if (owners > 2) this.#shared.set(key, owners - 1);
      else if (owners === 2) this.#shared.delete(key);
      else if (this.#facts.delete(key)) dropped.push(fact);
    }
    return { added, dropped };
  }

  #apply(added: readonly Fact[], dropped: readonly Fact[]): void {
    const nftables = this.#nftables;
    if (nftables === undefined || this.#problem !== undefined) return;
    if (added.length + dropped.length === 0) return;
    try {
      nftables.change([...this.#changes('add', added), ...this.#changes('delete', dropped)]);
    } catch (error) {
      // Somebody deleted the table or set, or the kernel's answer was lost: everything is loaded anew.
      const unknown = error instanceof Unanswered;
      if (!unknown && !isKernelError(error, 'ENOENT', 'EEXIST')) throw error;
      this.#log.warn(
        { error: String(error) },
        'nftables are not as expected: loading everything again',
      );
      try {
        this.#load(nftables);
      } catch (cause) {
        // The next call of `ready` loads everything first.
        this.#problem = cause;
        throw cause;
      }
    }
  }

  #load(nftables: Nftables): void {
    const tables = RULESETS.map((ruleset) => this.#tableOf(ruleset));
    const exclusive = this.#exclusive;
    const rules = RULESETS.map((ruleset) => rulesText(ruleset, this.#table)).join('\n');
    if (!nftables.makeTables(tables, { exclusive })) this.#watchOthers(nftables);
    try {
      nftables.run(rules, 'rules');
    } catch (error) {
      // A set that an older release made may have another type: the tables are deleted and made again.
      this.#log.warn(
        { error: String(error) },
        'nftables of another release: deleted and made again',
      );
      nftables.run(tables.map(({ family, name }) => `delete table ${family} ${name}`).join('\n'));
      nftables.makeTables(tables, { exclusive });
      nftables.run(rules, 'rules');
    }
    if (this.#watch !== undefined) this.#rules = this.#listedRules(nftables);
    nftables.change([
      ...RULESETS.flatMap((ruleset) =>
        Object.entries(ruleset.sets).map(([set, declaration]): ElementChange => ({
          action: 'flush',
          table: this.#tableOf(ruleset),
          set,
          declaration,
          elements: [],
        })),
      ),
      ...this.#deviceChains(nftables),
      ...this.#changes('add', [...this.#facts.values()].filter(isElement)),
    ]);
  }

  /**
   * What makes the kernel's chains on single devices ours. A chain that is hooked as it should be stays hooked, and gets
   * its rule anew: a frame that met it twice would be dropped as one that no rule has let in. All others are deleted,
   * including those of devices that are gone.
   */
  #deviceChains(nftables: Nftables): DeviceChainChange[] {
    const table = this.#tableOf(DEVICE_FILTER);
    const found = nftables.deviceChains(table);
    const wanted = [...this.#facts.values()].filter(isChain);
    const isHooked = ({ chain, hook, device }: ChainFact): boolean =>
      found.get(chain)?.hook === hook && found.get(chain)?.device === device;
    const hooked = new Set(wanted.filter(isHooked).map(({ chain }) => chain));
    const others = [...found.keys()].filter((chain) => !hooked.has(chain));
    return [
      ...others.map((chain): DeviceChainChange => ({ action: 'delete', table, chain })),
      ...wanted.map(({ chain, hook, device, goto }): DeviceChainChange => {
        if (hooked.has(chain)) return { action: 'renew', table, chain, goto };
        return { action: 'add', table, chain, hook, device, goto };
      }),
    ];
  }

  /** One change for each set, then the chains. */
  #changes(
    action: 'add' | 'delete',
    facts: readonly Fact[],
  ): (ElementChange | DeviceChainChange)[] {
    const bySet = Map.groupBy(
      facts.filter(isElement),
      ({ ruleset, set }) => `${ruleset.family} ${set}`,
    );
    const elements = [...bySet.values()].flatMap((some): ElementChange[] => {
      const [first] = some;
      const declaration = first?.ruleset.sets[first.set];
      if (first === undefined || declaration === undefined) return [];
      const table = this.#tableOf(first.ruleset);
      const own = some.map(({ element }) => element);
      return [{ action, table, set: first.set, declaration, elements: own }];
    });
    const chains = facts.filter(isChain).map(({ ruleset, chain, hook, device, goto }) => {
      const place = { table: this.#tableOf(ruleset), chain };
      return action === 'add' ? { action, ...place, hook, device, goto } : { action, ...place };
    });
    return [...elements, ...chains];
  }

  #tableOf = ({ family }: Ruleset): NftTable => ({ family, name: this.#table });

  #watchOthers(nftables: Nftables): void {
    this.#watch ??= nftables.onForeignChange(() => {
      this.#look ??= setTimeout(() => {
        this.#look = undefined;
        try {
          this.restore();
        } catch (error) {
          this.#log.error({ error: String(error) }, 'nftables cannot be loaded again');
        }
      }, LOOK_MS).unref();
    });
  }

  #expectedOf({ family, sets }: Ruleset): NftContent[] {
    const facts = [...this.#facts.values()].filter(({ ruleset }) => ruleset.family === family);
    const elements = Map.groupBy(facts.filter(isElement), ({ set }) => set);
    const own = (this.#rules ?? []).filter(({ what }) => what.startsWith(`${family} `));
    const onDevices = this.#rules === undefined ? [] : facts.filter(isChain);
    return [
      ...own,
      ...onDevices.map(({ chain, hook, goto }): NftContent => ({
        what: `${family} chain ${chain}`,
        has: deviceChain(hook, goto),
      })),
      ...Object.entries(sets).map(([set, declaration]): NftContent => ({
        what: `${family} set ${set}`,
        has: (elements.get(set) ?? []).flatMap(({ element }) => elementTexts(declaration, element)),
      })),
    ];
  }

  /** The chains of our rules, without those on single devices, as they are listed now. */
  #listedRules(nftables: Nftables): NftContent[] {
    return RULESETS.flatMap((ruleset) => {
      const names = new Set(
        Object.keys(ruleset.chains).map((name) => `${ruleset.family} chain ${name}`),
      );
      return chainsIn(nftables, this.#tableOf(ruleset)).filter(({ what }) => names.has(what));
    });
  }
}

type Facts = ReadonlyMap<string, Fact>;

const NO_FACTS: Facts = new Map();

const isChain = (fact: Fact): fact is ChainFact => fact.kind === 'chain';
const isElement = (fact: Fact): fact is ElementFact => fact.kind === 'element';
