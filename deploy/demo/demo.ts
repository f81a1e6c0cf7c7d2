import { parseArgs } from 'node:util';
import { fileURLToPath } from 'node:url';
import { printableLines } from '#protocol/printable.ts';
import { enterSandbox, isInSandbox } from './sandbox.ts';
import { Stage } from './stage.ts';
import { Story } from './story.ts';
import { World } from './world.ts';

const HELP = `Shows one host: a container and a virtual machine get their network from one request each.

  npm run demo            the virtual machine is a few lines that answer ARP and ping on its TAP
  npm run demo -- --vm    the virtual machine is a real guest in QEMU (10-20 s to boot)

Everything happens in a network and a mount namespace of the demo's own. Needs root.
`;

const { values: flags } = parseArgs({
  options: { vm: { type: 'boolean', default: false }, help: { type: 'boolean', short: 'h' } },
});

async function main(): Promise<void> {
  const stage = new Stage({
    steps: 9,
    colours: process.stdout.isTTY && (process.env['NO_COLOR'] ?? '') === '',
    write: (text) => process.stdout.write(text),
  });
  await play(stage);
  stage.end('Done: both came, talked and went; every process has ended');
}

/** Tells the story. Returns or throws when everything that was started has ended. */
async function play(stage: Stage): Promise<void> {
  await using world = new World(process.env);
  const interrupted = new Promise<never>((_, reject) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
      process.once(signal, () => reject(new Error(`interrupted by ${signal}`)));
    }
    // Whoever read went away (`npm run demo | head`).
    process.stdout.on('error', reject);
  });
  const width = (process.stdout.columns ?? 100) - 6;
  const story = new Story({ stage, world, realGuest: flags.vm, width });
  await Promise.race([story.tell(), interrupted]);
}

if (flags.help === true) {
  process.stdout.write(HELP);
} else if (process.getuid?.() !== 0) {
  process.stderr.write('the demo makes namespaces and interfaces: run it as root\n');
  process.exitCode = 1;
} else if (isInSandbox(process.env)) {
  try {
    await main();
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    process.stderr.write(`\nThe demo failed: ${printableLines(reason)}\n`);
    process.exitCode = 1;
  }
  // Whatever an interrupted step left waiting has nothing to wait for any more.
  process.exit();
} else {
  enterSandbox(fileURLToPath(import.meta.url), process.argv.slice(2));
}
