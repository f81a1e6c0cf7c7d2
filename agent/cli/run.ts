import { CommanderError } from 'commander';
import packageJson from '../../package.json' with { type: 'json' };
import { toErrorBody, VoltError } from '#protocol/errors.ts';
import { redacted } from '#protocol/secrets.ts';
import { ExecError, UsageError } from './errors.ts';
import { EXIT, type ExitCode, exitCodeOf } from './exit-codes.ts';
import type { Page } from './page.ts';
import { createProgram } from './program.ts';
import type { Shell } from './shell.ts';

/** Runs one command line to its end; answers the exit code of the process. */
export async function run(shell: Shell, words: readonly string[]): Promise<ExitCode> {
  try {
    const program = await createProgram({ shell, version: packageJson.version, words });
    await program.parseAsync(words, { from: 'user' });
    return shell.exitCode;
  } catch (error) {
    return report(shell, error);
  }
}

/** Prints an error on standard error, and answers its exit code. */
function report(shell: Shell, error: unknown): ExitCode {
  // Commander has printed it already; a request for help or for the version is no error.
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
  const known =
    error instanceof UsageError ? new VoltError('INVALID_REQUEST', error.message) : error;
  shell.output().complaint(toErrorBody(known), () => complaint(error));
  if (error instanceof UsageError) return EXIT.usage;
  if (error instanceof ExecError) return error.exitCode;
  return error instanceof VoltError ? exitCodeOf(error) : EXIT.failed;
}

function complaint(error: unknown): Page {
  const message = error instanceof Error ? error.message : String(error);
  const lines = redacted(message).split('\n');
  const code = error instanceof VoltError ? ` (${error.code})` : '';
  // A line of a foreign message must not look like one of ours.
  const indent = error instanceof UsageError ? '' : '  ';
  const page = lines.map((line, n) => (n === 0 ? `voltnet: ${line}` : `${indent}${line}`));
  return [...page.slice(0, -1), `${page.at(-1) ?? ''}${code}`];
}
