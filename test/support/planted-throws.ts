import { readFileSync, writeFileSync } from 'node:fs';
import { registerHooks } from 'node:module';

// Loaded into an agent before its own code (`NODE_OPTIONS=--import …`): each function of the files named in
// VOLT_TEST_FILES counts as a step, and one of them, named in the file VOLT_TEST_CONTROL, throws when it is called next.
// SIGUSR2 reads that file anew, and writes there which steps have been gone since.

const { VOLT_TEST_FILES = '', VOLT_TEST_CONTROL = '' } = process.env;
const files = new Set(VOLT_TEST_FILES.split(','));
/** As prettier leaves the beginning of a function's body; not that of an `if` or a loop, and no type. */
const BODY =
  /(?:=>|^ +\}\)|^ +(?:static |async )*(?:get )?[#\w]+\(.*\)|^(?:export )?(?:async )?function .*\)|\): [^={]+) \{$/;
const CONTROL = /^\s*(?:\} )?(?:if|for|while|switch|catch|else|using)\b/;

let armed = '';
let gone = new Set<string>();

Object.assign(globalThis, {
  voltTestStep: (step: string): void => {
    gone.add(step);
    if (step !== armed) return;
    armed = '';
    throw new Error(`planted at ${step}`);
  },
});

registerHooks({
  load: (url, context, next) => {
    const loaded = next(url, context);
    const file = [...files].find((name) => url.endsWith(`/${name}`));
    if (file === undefined || loaded.source === undefined || loaded.source === null) return loaded;
    const lines = Buffer.from(loaded.source as string | Uint8Array)
      .toString()
      .split('\n');
    for (const [index, line] of lines.entries()) {
      if (!BODY.test(line) || CONTROL.test(line)) continue;
      // The declarations before a `try` throw nothing.
      const within = lines.slice(index + 1, index + 5).findIndex((one) => one.trim() === 'try {');
      lines[index + 1 + within] += ` voltTestStep('${file}:${index + 1}');`;
    }
    return { ...loaded, source: lines.join('\n') };
  },
});

process.on('SIGUSR2', () => {
  const { arm } = JSON.parse(readFileSync(VOLT_TEST_CONTROL, 'utf8')) as { arm: string };
  writeFileSync(`${VOLT_TEST_CONTROL}.gone`, JSON.stringify({ arm, gone: [...gone] }));
  gone = new Set();
  armed = arm;
});
