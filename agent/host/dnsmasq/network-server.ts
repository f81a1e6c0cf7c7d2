import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import type { Log } from '../../log.ts';
import { configuration, type Served } from './configuration.ts';
import { programPath } from './demands.ts';
import { Folder } from './folder.ts';
import { type HandedOut, parseLeases } from './leases.ts';
import { servicePortHolders } from './port-holders.ts';
import { supervise, type Supervisor } from './supervisor.ts';

const run = promisify(execFile);

const RETRY_FIRST_MS = 100;
const RETRY_MOST_MS = 5_000;
const RELEASES_AT_ONCE = 64;
const RELEASE_TIMEOUT_MS = 5_000;
const RELOAD_EVERY_MS = 300;

export interface NetworkServerOptions {
  readonly network: string;
  readonly runtimeDir: string;
  readonly log: Log;
}

/** One workload as DHCP knows it. */
interface Host {
  readonly mac: string;
  readonly addresses: readonly string[];
}

/**
 * The dnsmasq of one network on this host. Whoever uses it says what is to be (`serve`, `setHost`, `setNames`, `end`);
 * files and process follow a moment later, and again until they are so.
 */
export class NetworkServer {
  readonly network: string;
  readonly #options: NetworkServerOptions;
  readonly #folder: Folder;
  readonly #supervisor: Supervisor;
  readonly #hosts = new Map<string, Host>();
  /** Addresses of IPv6 whose leases are of a guest that is gone, whoever has the address now. */
  readonly #left = new Set<string>();
  #served: Served | undefined;
  #ended = false;
  /** It has to read its hosts again. */
  #stale = false;
  #reloadedAt = -Infinity;
  #problem: string | undefined;
  /** What `problem` says, without who is in the way. */
  #reason: string | undefined;
  #running: Promise<void> | undefined;
  #again = false;
  #timer: NodeJS.Timeout | undefined;
  #retryMs = RETRY_FIRST_MS;
  #stopped = false;
  #isReleasing = false;
  #unreleased: string | undefined;

  constructor(options: NetworkServerOptions) {
    const { network, runtimeDir } = options;
    this.network = network;
    this.#options = options;
    this.#folder = new Folder(folderOf(runtimeDir, network));
    const { path: folder } = this.#folder;
    const onEnd = (): void => this.nudge();
    this.#supervisor = supervise(runtimeDir, { network, folder, onEnd });
  }

  /** Why it does not serve as it is to. */
  get problem(): string | undefined {
    return this.#problem ?? this.#unreleased;
  }

  /** The ids of whom it serves or names, as the files say. */
  get ids(): Folder['ids'] {
    return this.#folder.ids;
  }

  serve(served: Served): void {
    const { stateFolder, user } = this.#supervisor;
    this.#served = served;
    this.#folder.setConf(
      configuration(served, {
        hosts: this.#folder.hostsPath,
        names: this.#folder.namesPath,
        leases: join(stateFolder, 'leases'),
        pid: join(stateFolder, 'pid'),
        user,
      }),
    );
    this.nudge();
  }

  setHost(id: string, host: (Host & { readonly line: string }) | undefined): void {
    const before = this.#hosts.get(id);
    if (before !== undefined && before.mac !== host?.mac) this.forgetLeases(id);
    if (host === undefined) this.#hosts.delete(id);
    else this.#hosts.set(id, host);
    this.#folder.setHost(id, host?.line);
    this.nudge();
  }

  setNames(id: string, lines: readonly string[]): void {
    this.#folder.setNames(id, lines);
    this.nudge();
  }

  /** The guest of before is gone: the next one names itself differently, and gets no lease of IPv6 that is another's. */
  forgetLeases(id: string): void {
    for (const address of this.#hosts.get(id)?.addresses ?? []) {
      if (address.includes(':')) this.#left.add(address);
    }
    this.nudge();
  }

  /** Looks whether it still runs. */
  look(): void {
    if (this.#served !== undefined && !this.#supervisor.isRunning()) this.nudge();
  }

  /** Ends dnsmasq and removes its files; resolves when both are gone. */
  async end(): Promise<void> {
    this.#ended = true;
    this.nudge();
    await this.#running;
  }

  /** The agent ends, and dnsmasq goes on. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#running;
  }

  nudge(): void {
    if (this.#stopped) return;
    clearTimeout(this.#timer);
    if (this.#running !== undefined) {
      this.#again = true;
      return;
    }
    this.#running = this.#converge().finally(() => {
      this.#running = undefined;
      if (this.#again) {
        this.#again = false;
        this.nudge();
      }
    });
  }

  async #converge(): Promise<void> {
    // What comes in one turn of the event loop is written together.
    await Promise.resolve();
    try {
      if (this.#ended) await this.#remove();
      else await this.#apply();
      if (this.#problem !== undefined) {
        this.#options.log.info({ network: this.network }, 'DHCP and DNS are served again');
      }
      this.#problem = undefined;
      this.#reason = undefined;
      this.#retryMs = RETRY_FIRST_MS;
      this.#release();
    } catch (error) {
      const reason = messageOf(error);
      // Who is in the way takes a look at every process: once for each reason.
      if (reason !== this.#reason) {
        this.#problem = withHolders(reason);
        this.#options.log.warn(
          { network: this.network, error: this.#problem },
          'DHCP and DNS are not served',
        );
      }
      this.#reason = reason;
      this.#retry();
    }
  }

  #retry(): void {
    if (this.#stopped) return;
    this.#timer = setTimeout(() => this.nudge(), this.#retryMs).unref();
    this.#retryMs = Math.min(2 * this.#retryMs, RETRY_MOST_MS);
  }

  async #remove(): Promise<void> {
    await this.#supervisor.stop();
    this.#folder.remove();
  }

  async #apply(): Promise<void> {
    const written = this.#folder.write();
    if (this.#served === undefined) return;
    this.#stale ||= written.hosts;
    if (written.conf || !this.#supervisor.isRunning()) {
      this.#stale = false;
      await this.#supervisor.start();
      this.#options.log.info({ network: this.network }, 'dnsmasq started');
    } else if (this.#stale) {
      await this.#reload();
    }
  }

  /** Many may go in a second, and each time dnsmasq reads the files of all that stay. */
  async #reload(): Promise<void> {
    const waitMs = this.#reloadedAt + RELOAD_EVERY_MS - performance.now();
    if (waitMs > 0) {
      this.#timer = setTimeout(() => this.nudge(), waitMs).unref();
      return;
    }
    this.#stale = false;
    this.#reloadedAt = performance.now();
    await this.#supervisor.reload();
  }

  /**
   * Ends the leases of whom this host does not have any more: dnsmasq gives a leased address to nobody else, whatever its
   * files say. Nobody waits for it, since each takes a process, and dnsmasq reads its packets in its own time.
   */
  #release(): void {
    if (this.#isReleasing) return;
    this.#isReleasing = true;
    void this.#releaseAll().finally(() => {
      this.#isReleasing = false;
    });
  }

  async #releaseAll(): Promise<void> {
    let waitMs = RETRY_FIRST_MS;
    for (;;) {
      const gone = this.#gone();
      if (gone.length === 0) break;
      try {
        if (this.#stopped || this.#ended) return;
        await releaseAll(gone.slice(0, RELEASES_AT_ONCE));
        this.#unreleased = undefined;
      } catch (error) {
        this.#unreleased = `leases do not end: ${messageOf(error)}`;
        waitMs = Math.min(2 * waitMs, RETRY_MOST_MS);
      }
      await sleep(waitMs, undefined, { ref: false });
    }
    this.#unreleased = undefined;
  }

  /** What ends the leases of whom this host does not have any more. */
  #gone(): Release[] {
    if (this.#served === undefined) return [];
    const { v4, v6, serverId = '' } = this.#handedOut();
    const device = this.#served.network.bridge;
    const holders = new Map(
      [...this.#hosts.values()].flatMap(({ mac, addresses }) =>
        addresses.map((address) => [address, mac] as const),
      ),
    );
    const gone4 = v4.filter(({ mac, address }) => holders.get(address) !== mac);
    const gone6 = v6.filter(({ address }) => !holders.has(address) || this.#left.has(address));
    const leased = new Set(gone6.map(({ address }) => address));
    for (const address of this.#left) if (!leased.has(address)) this.#left.delete(address);
    return [
      ...gone4.map(({ mac, address }): Release => ['dhcp_release', [device, address, mac]]),
      ...gone6.map(({ address, iaid, clientId }): Release => {
        const who = ['--client-id', clientId, '--server-id', serverId, '--iaid', iaid];
        return ['dhcp_release6', ['--iface', device, ...who, '--ip', address]];
      }),
    ];
  }

  #handedOut(): HandedOut {
    try {
      return parseLeases(readFileSync(join(this.#supervisor.stateFolder, 'leases'), 'utf8'));
    } catch {
      // It has handed out nothing yet.
      return parseLeases('');
    }
  }
}

const messageOf = (error: unknown): string =>
  error instanceof Error ? error.message : String(error);

function withHolders(reason: string): string {
  const holders = servicePortHolders().filter(({ isOurs }) => !isOurs);
  return holders.length === 0 ? reason : `${reason}; ${holders.map(({ text }) => text).join(', ')}`;
}

/** Where the agent has the files for all dnsmasqs. */
export const foldersOf = (runtimeDir: string): string => join(runtimeDir, 'dnsmasq');

const folderOf = (runtimeDir: string, network: string): string =>
  join(foldersOf(runtimeDir), network);

type Release = readonly ['dhcp_release' | 'dhcp_release6', readonly string[]];

/** In one process: to start one holds up everything else for some milliseconds. Rejects if one of them fails. */
async function releaseAll(releases: readonly Release[]): Promise<void> {
  const lines = releases.map(([name, args]) => {
    const program = programPath(name);
    if (program === undefined) throw new Error(`this host has no ${name}`);
    return `${[program, ...args].map(quoted).join(' ')} || failed=1`;
  });
  const script = ['failed=0', ...lines, 'exit $failed'].join('\n');
  await run('sh', ['-c', script], { timeout: RELEASE_TIMEOUT_MS });
}

/** As a word of the shell. */
const quoted = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`;
