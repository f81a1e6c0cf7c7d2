import { drained, STANDARD } from './printer.ts';
import { run } from './run.ts';
import { Shell } from './shell.ts';

const shell = new Shell({ env: process.env, terminal: STANDARD });
const exitCode = await run(shell, process.argv.slice(2));
await drained();
// Without this the process would wait for things that a library leaves open: a socket to a silent server, or the
// look-up of a name.
process.exit(exitCode);
