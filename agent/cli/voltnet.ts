import { drained, STANDARD } from './printer.ts';
import { run } from './run.ts';
import { Shell } from './shell.ts';

const shell = new Shell({ env: process.env, terminal: STANDARD });
const exitCode = await run(shell, process.argv.slice(2));
await drained();
// By itself the process would wait for what a library has left open: a socket to a server that has never said a word, or
// the look-up of a name.
process.exit(exitCode);
