import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
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
const RELEASE_TIMEOUT_MS = 2_000;

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
  #served: Served | undefined;
  #ended = false;
  /** It has to read its hosts again. */
  #stale = false;
  #problem: string | undefined;
  #running: Promise<void> | undefined;
  #again = false;
  #timer: NodeJS.Timeout | undefined;
  #retryMs = RETRY_FIRST_MS;
  #stopped = false;

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
    return this.#problem;
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
    if (host === undefined) this.#hosts.delete(id);
    else this.#hosts.set(id, host);
    this.#folder.setHost(id, host?.line);
    this.nudge();
  }

  setNames(id: string, lines: readonly string[]): void {
    this.#folder.setNames(id, lines);
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
      const isDone = this.#ended ? await this.#remove() : await this.#apply();
      if (this.#problem !== undefined) {
        this.#options.log.info({ network: this.network }, 'DHCP and DNS are served again');
      }
      this.#problem = undefined;
      if (isDone) this.#retryMs = RETRY_FIRST_MS;
      else this.#retry();
    } catch (error) {
      const reason = told(error);
      if (reason !== this.#problem) {
        this.#options.log.warn(
          { network: this.network, error: reason },
          'DHCP and DNS are not served',
        );
      }
      this.#problem = reason;
      this.#retry();
    }
  }

  #retry(): void {
    if (this.#stopped) return;
    this.#timer = setTimeout(() => this.nudge(), this.#retryMs).unref();
    this.#retryMs = Math.min(2 * this.#retryMs, RETRY_MOST_MS);
  }

  async #remove(): Promise<boolean> {
    await this.#supervisor.stop();
    this.#folder.remove();
    return true;
  }

  /** False where something is still to be looked at. */
  async #apply(): Promise<boolean> {
    const written = this.#folder.write();
    if (this.#served === undefined) return true;
    this.#stale ||= written.hosts;
    if (written.conf || !this.#supervisor.isRunning()) {
      this.#stale = false;
      await this.#supervisor.start();
      this.#options.log.info({ network: this.network }, 'dnsmasq started');
    } else if (this.#stale) {
      this.#stale = false;
      await this.#supervisor.reload();
    }
    return this.#releaseAll();
  }

  /**
   * Ends the leases of whom this host does not have any more: dnsmasq gives a leased address to nobody else, whatever its
   * files say. False where there are some left: it reads its packets in its own time.
   */
  async #releaseAll(): Promise<boolean> {
    const { v4, v6, serverId } = this.#handedOut();
    const device = this.#served?.network.bridge ?? '';
    const holders = new Map(
      [...this.#hosts.values()].flatMap(({ mac, addresses }) =>
        addresses.map((address) => [address, mac] as const),
      ),
    );
    const gone4 = v4.filter(({ mac, address }) => holders.get(address) !== mac);
    const gone6 = v6.filter(({ address }) => !holders.has(address));
    for (const { mac, address } of gone4) {
      await release('dhcp_release', [device, address, mac]);
    }
    for (const { address, iaid, clientId } of gone6) {
      await release('dhcp_release6', [
        ...['--iface', device, '--client-id', clientId, '--server-id', serverId ?? ''],
        ...['--iaid', iaid, '--ip', address],
      ]);
    }
    return gone4.length + gone6.length === 0;
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

/** With whoever is in the way. */
function told(error: unknown): string {
  const reason = error instanceof Error ? error.message : String(error);
  const holders = servicePortHolders().filter(({ isOurs }) => !isOurs);
  return holders.length === 0 ? reason : `${reason}; ${holders.map(({ text }) => text).join(', ')}`;
}

/** Where the agent has the files for all dnsmasqs. */
export const foldersOf = (runtimeDir: string): string => join(runtimeDir, 'dnsmasq');

const folderOf = (runtimeDir: string, network: string): string =>
  join(foldersOf(runtimeDir), network);

async function release(name: 'dhcp_release' | 'dhcp_release6', args: string[]): Promise<void> {
  const program = programPath(name);
  if (program === undefined) throw new Error(`this host has no ${name}`);
  await run(program, args, { timeout: RELEASE_TIMEOUT_MS });
}
