import { existsSync } from 'node:fs';
import type { Command } from 'commander';
import { toErrorBody } from '#protocol/errors.ts';
import type { Connected } from './connect.ts';
import { UsageError } from './errors.ts';
import { EXIT, type ExitCode } from './exit-codes.ts';
import type { HostClient } from './local-client.ts';
import { Printer, type Terminal } from './printer.ts';
import { type CommonFlags, loadSettings, type Settings, socketIn } from './settings.ts';

/** What a run of `voltnet` has of the outside. */
export interface Surroundings {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly terminal: Terminal;
}

/** For requests to one host. */
export interface Asked {
  readonly client: HostClient;
  readonly settings: Settings;
}

/** What takes longer than this is told of. */
const TELL_EVERY_MS = 1_500;

/** What every command works with: settings, output, a connection if it asks for one, the exit code. */
export class Shell {
  readonly #surroundings: Surroundings;
  #flags: CommonFlags = {};
  exitCode: ExitCode = EXIT.ok;

  constructor(surroundings: Surroundings) {
    this.#surroundings = surroundings;
  }

  /** Takes note of the common flags, before the command runs. */
  begin(command: Command): void {
    this.#flags = command.optsWithGlobals<CommonFlags>();
  }

  get env(): Surroundings['env'] {
    return this.#surroundings.env;
  }

  settings(): Settings {
    return loadSettings(this.#flags, this.#surroundings.env);
  }

  /** For a command that is about this machine alone. Throws UsageError where `--host` names another one. */
  settingsHere(): Settings {
    const settings = this.settings();
    if (this.#flags.host !== undefined && !settings.isThisHost) {
      const message =
        'this command is about the host that it runs on: run it there, without --host';
      throw new UsageError(`--host ${settings.host}: ${message}`);
    }
    return settings;
  }

  /** Results, notes and errors. Errors of the command line itself are words, also with `--json`. */
  output(): Printer {
    const { terminal, env } = this.#surroundings;
    return new Printer({ terminal, env, json: this.#flags.json === true });
  }

  /** NATS and the client are loaded here, and only by commands that talk to an agent. */
  async withClient<T>(
    work: (connected: Connected) => Promise<T>,
    options: { stay?: boolean } = {},
  ): Promise<T> {
    const settings = this.settings();
    if (settings.local) throw new UsageError('--local: this command needs NATS');
    const { withClient } = await import('./connect.ts');
    const answer = withClient(settings, work, options);
    return options.stay === true ? answer : this.#patiently(answer);
  }

  /** Tells people who wait that there is still something to wait for. */
  async #patiently<T>(answer: Promise<T>): Promise<T> {
    if (!this.#surroundings.terminal.isTTY()) return answer;
    const began = performance.now();
    const timer = setInterval(() => {
      const seconds = Math.round((performance.now() - began) / 1_000);
      this.output().note(`waiting for an answer, ${seconds} s`);
    }, TELL_EVERY_MS);
    return answer.finally(() => clearInterval(timer));
  }

  /**
   * As `connected`, for requests to one host: over NATS or, with `--local` or if NATS did not take the question, over
   * the socket of the agent here. `work` may begin twice; the first time it has asked nobody anything. `host`: the host
   * that the command itself names.
   */
  async withHost<T>(
    work: (asked: Asked) => Promise<T>,
    { host }: { host?: string } = {},
  ): Promise<T> {
    const named = host === undefined ? {} : { host };
    const settings = loadSettings({ ...this.#flags, ...named }, this.#surroundings.env);
    if (!settings.local) {
      try {
        return await this.withClient(work);
      } catch (error) {
        const { whyUnasked } = await import('./nats-words.ts');
        const reason = whyUnasked(error);
        if (reason === undefined || !canAskHere(settings)) throw error;
        const notice = { way: 'local', ...toErrorBody(reason) };
        this.output().notice(notice, `${reason.message}; asking the agent of this host directly`);
      }
    }
    const { LocalClient } = await import('./local-client.ts');
    return this.#patiently(work({ client: new LocalClient(settings), settings }));
  }
}

/** Whether the agent of that host has its socket here, and answers this user. */
const canAskHere = ({ isThisHost, runtimeDir }: Settings): boolean =>
  isThisHost && process.geteuid?.() === 0 && existsSync(socketIn(runtimeDir));
