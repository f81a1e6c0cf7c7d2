import { STANDARD } from './printer.ts';
import { run } from './run.ts';
import { Shell } from './shell.ts';

const shell = new Shell({ env: process.env, terminal: STANDARD });
process.exitCode = await run(shell, process.argv.slice(2));
