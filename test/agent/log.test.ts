import { spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { actsOnTerminals } from '../support/hostile-text.ts';

const TEXT = 'a\x1b[2J\x7f\x9b31m\u202e\u2028\u200b\u{e0041}\nb'.repeat(8);

// In a process of its own: pino writes to the descriptor, past what a test could look at.
test.each([TEXT.slice(0, 16), TEXT])('a line of the log is one line of plain JSON: %j', (text) => {
  const program = `
    import { createLog } from '#agent/log.ts';
    createLog('info', 'h1').warn({ [${JSON.stringify(text)}]: ${JSON.stringify(text)} }, ${JSON.stringify(text)});`;
  const { stdout } = spawnSync(process.execPath, ['--input-type=module', '--eval', program], {
    encoding: 'utf8',
  });
  expect(actsOnTerminals(stdout)).toEqual([]);
  expect(stdout.trimEnd().split('\n')).toHaveLength(1);
  expect(JSON.parse(stdout)).toMatchObject({ host: 'h1', msg: text, [text]: text });
});
