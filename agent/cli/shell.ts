import type { Command } from 'commander';
import type { Connected } from './connect.ts';
import { EXIT, type ExitCode } from './exit-codes.ts';
import { Printer, type Terminal } from './printer.ts';
import { type CommonFlags, loadSettings, type Settings } from './settings.ts';

/** What a run of `voltnet` has of the outside. */
export interface Surroundings {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly terminal: Terminal;
}

/** What every command works with: settings, output, a connection when it asks for one, the exit code. */
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

  settings(): Settings {
    return loadSettings(this.#flags, this.#surroundings.env);
  }

  /** Results, notes and errors. What is wrong with the command line itself is said in words, also with `--json`. */
  output(): Printer {
    const { terminal, env } = this.#surroundings;
    return new Printer({ terminal, env, json: this.#flags.json === true });
  }

  /** NATS and the client are loaded here, by the commands that talk to an agent and by no other. */
  async withClient<T>(
    work: (connected: Connected) => Promise<T>,
    options: { stay?: boolean } = {},
  ): Promise<T> {
    const settings = this.settings();
    const { withClient } = await import('./connect.ts');
    return withClient(settings, work, options);
  }
}
