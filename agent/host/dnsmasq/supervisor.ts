import { execFile, spawn } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
} from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { programPath } from './demands.ts';

const run = promisify(execFile);

/** What keeps one network's dnsmasq running. Calls come one at a time. */
export interface Supervisor {
  /** Where dnsmasq keeps its leases and its process id. */
  readonly stateFolder: string;
  /** Who dnsmasq becomes by itself; undefined where somebody else sees to that. */
  readonly user: string | undefined;
  /** Starts dnsmasq anew if it runs. Rejects with the reason where it does not come up. */
  start(): Promise<void>;
  /** Has it read its hosts again. */
  reload(): Promise<void>;
  stop(): Promise<void>;
  /** Whether it runs now. */
  isRunning(): boolean;
}

export interface SupervisorOptions {
  readonly network: string;
  /** The agent's folder for this network, with `conf`. */
  readonly folder: string;
  /** Called when dnsmasq has ended by itself. */
  readonly onEnd: () => void;
}

/** The unit below reads its configuration there. */
const UNIT_RUNTIME_DIR = '/run/volt-vmm/network';
const UNIT = 'volt-network-dnsmasq@';
const UNIT_FOLDERS = ['/etc/systemd/system', '/run/systemd/system', '/usr/lib/systemd/system'];
const UP_MS = 5_000;
const DOWN_MS = 2_000;
const LOOK_MS = 10;

/** Under systemd a unit of its own, which outlives the agent; elsewhere a process that does. */
export function supervise(runtimeDir: string, options: SupervisorOptions): Supervisor {
  const hasUnit =
    runtimeDir === UNIT_RUNTIME_DIR &&
    existsSync('/run/systemd/system') &&
    UNIT_FOLDERS.some((folder) => existsSync(join(folder, `${UNIT}.service`)));
  return hasUnit ? new Unit(options) : new Child(options);
}

/** The process that a pid file names, if it is a dnsmasq with this configuration; numbers are used again. */
export function dnsmasqOf(pidFile: string, conf: string): number | undefined {
  try {
    const pid = Number(readFileSync(pidFile, 'utf8'));
    const args = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
    return args.includes(confArgument(conf)) ? pid : undefined;
  } catch {
    return undefined;
  }
}

const confArgument = (conf: string): string => `--conf-file=${conf}`;

class Unit implements Supervisor {
  readonly #name: string;
  readonly #conf: string;
  readonly stateFolder: string;
  readonly user = undefined;

  constructor({ network, folder }: SupervisorOptions) {
    this.#name = `${UNIT}${network}.service`;
    this.#conf = join(folder, 'conf');
    this.stateFolder = join('/run/volt-network-dnsmasq', network);
  }

  async start(): Promise<void> {
    await this.#systemctl('restart');
    const isUp = await until(() => this.isRunning(), UP_MS);
    if (!isUp) throw new Error(`it does not come up (journalctl -u ${this.#name})`);
  }

  async reload(): Promise<void> {
    await this.#systemctl('reload');
  }

  async stop(): Promise<void> {
    await this.#systemctl('stop');
  }

  isRunning(): boolean {
    return dnsmasqOf(join(this.stateFolder, 'pid'), this.#conf) !== undefined;
  }

  async #systemctl(verb: string): Promise<void> {
    await run('systemctl', [verb, this.#name], { timeout: UP_MS });
  }
}

class Child implements Supervisor {
  readonly #conf: string;
  readonly #log: string;
  readonly #onEnd: () => void;
  readonly stateFolder: string;
  readonly user: string;

  constructor({ folder, onEnd }: SupervisorOptions) {
    this.#conf = join(folder, 'conf');
    this.#log = join(folder, 'log');
    this.#onEnd = onEnd;
    this.stateFolder = join(folder, 'state');
    this.user = userOfDnsmasq().name;
  }

  async start(): Promise<void> {
    await this.stop();
    await endStrays(this.#conf);
    const program = programPath('dnsmasq');
    if (program === undefined) throw new Error('this host has no dnsmasq');
    const { uid, gid } = userOfDnsmasq();
    mkdirSync(this.stateFolder, { recursive: true });
    chmodSync(this.stateFolder, 0o755);
    chownSync(this.stateFolder, uid, gid);
    const log = openSync(this.#log, 'w', 0o600);
    const child = spawn(program, [confArgument(this.#conf)], {
      // In a session of its own, it goes on when the agent ends.
      detached: true,
      cwd: '/',
      env: {},
      stdio: ['ignore', 'ignore', log],
    });
    closeSync(log);
    child.unref();
    let ended = false;
    child.on('error', () => (ended = true));
    child.on('exit', () => {
      ended = true;
      this.#onEnd();
    });
    await until(() => ended || this.isRunning(), UP_MS);
    if (!this.isRunning()) throw new Error(this.#lastWords());
  }

  async reload(): Promise<void> {
    this.#signal('SIGHUP');
  }

  async stop(): Promise<void> {
    if (!this.#signal('SIGTERM')) return;
    if (await until(() => !this.isRunning(), DOWN_MS)) return;
    this.#signal('SIGKILL');
    await until(() => !this.isRunning(), DOWN_MS);
  }

  isRunning(): boolean {
    return this.#pid() !== undefined;
  }

  #pid(): number | undefined {
    return dnsmasqOf(join(this.stateFolder, 'pid'), this.#conf);
  }

  #signal(signal: NodeJS.Signals): boolean {
    const pid = this.#pid();
    if (pid === undefined) return false;
    try {
      return process.kill(pid, signal);
    } catch {
      return false;
    }
  }

  #lastWords(): string {
    try {
      const last = readFileSync(this.#log, 'utf8').trim().split('\n').at(-1) ?? '';
      return last.replace(/^dnsmasq(\[\d+\])?: /, '') || 'it ended without a word';
    } catch {
      return 'it ended without a word';
    }
  }
}

/** Ends a dnsmasq whose pid file is gone, or was never written: the agent was killed while it began. */
async function endStrays(conf: string): Promise<void> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  await Promise.all(
    pids.map(async (pid) => {
      const args = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
      if (!args.split('\0').includes(confArgument(conf))) return;
      process.kill(Number(pid), 'SIGKILL');
      await until(() => !existsSync(`/proc/${pid}`), DOWN_MS);
    }),
  );
}

interface User {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

/** The user that the package of dnsmasq makes for it, or nobody. */
function userOfDnsmasq(): User {
  const users = new Map<string, User>(
    readFileSync('/etc/passwd', 'utf8')
      .split('\n')
      .map((line) => line.split(':'))
      .map(([name = '', , uid, gid]) => [name, { name, uid: Number(uid), gid: Number(gid) }]),
  );
  return users.get('dnsmasq') ?? users.get('nobody') ?? { name: 'root', uid: 0, gid: 0 };
}

async function until(holds: () => boolean, timeoutMs: number): Promise<boolean> {
  for (const end = performance.now() + timeoutMs; performance.now() < end;) {
    if (holds()) return true;
    await sleep(LOOK_MS);
  }
  return holds();
}
