import { constants } from 'node:os';
import { CommanderError } from 'commander';
import packageJson from '../../package.json' with { type: 'json' };
import { toErrorBody, VoltError } from '#protocol/errors.ts';
import { redacted } from '#protocol/secrets.ts';
import { ExecError, UsageError } from './errors.ts';
import { EXIT, type ExitCode, exitCodeOf } from './exit-codes.ts';
import { printable } from './output.ts';
import { createProgram } from './program.ts';
import { Shell } from './shell.ts';

const shell = new Shell({
  env: process.env,
  write: (text) => writeTo(process.stdout, text),
  writeError: (text) => writeTo(process.stderr, text),
  isTTY: () => process.stdout.isTTY,
});

async function run(words: readonly string[]): Promise<ExitCode> {
  try {
    const program = await createProgram({ shell, version: packageJson.version, words });
    await program.parseAsync(words, { from: 'user' });
    return shell.exitCode;
  } catch (error) {
    return report(error);
  }
}

/** Says what went wrong, on standard error, and answers which exit code that is. */
function report(error: unknown): ExitCode {
  // Commander has said it already; asking for help or for the version is no error.
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
  complain(error);
  if (error instanceof UsageError) return EXIT.usage;
  if (error instanceof ExecError) return error.exitCode;
  return error instanceof VoltError ? exitCodeOf(error) : EXIT.failed;
}

function complain(error: unknown): void {
  if (shell.json) {
    const known =
      error instanceof UsageError ? new VoltError('INVALID_REQUEST', error.message) : error;
    writeTo(process.stderr, `${JSON.stringify(toErrorBody(known))}\n`);
    return;
  }
  const code = error instanceof VoltError ? ` (${error.code})` : '';
  const message = error instanceof Error ? error.message : String(error);
  const lines = redacted(message).split('\n').map(printable).join('\n');
  writeTo(process.stderr, `voltnet: ${lines}${code}\n`);
}

/** A reader that went away (`voltnet list | head -1`) ends the process as SIGPIPE would, without a word. */
function writeTo(stream: NodeJS.WriteStream, text: string): void {
  if (stream.listenerCount('error') === 0) {
    stream.on('error', () => process.exit(128 + constants.signals.SIGPIPE));
  }
  stream.write(text);
}

process.exitCode = await run(process.argv.slice(2));
