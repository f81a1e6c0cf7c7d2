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

const logged = (program: string, env: Record<string, string> = {}): string => {
  const source = `import { createLog, logForm } from '#agent/log.ts'; ${program}`;
  const words = ['--input-type=module', '--eval', source];
  const { stdout, stderr } = spawnSync(process.execPath, words, {
    encoding: 'utf8',
    env: { ...process.env, ...env },
  });
  return stdout + stderr;
};

test('text for people is one line of what the event says, and acts on no terminal', () => {
  const text = JSON.stringify(TEXT.slice(0, 16));
  const said = logged(
    `createLog('info', 'h1', await logForm('text')).warn({ id: ${text}, port: 67 }, ${text} + 'end');`,
  );
  expect(actsOnTerminals(said)).toEqual([]);
  expect(said).toMatch(/^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\] WARN: .*end \{.*"port":67/s);
});

test('text for people is one line with one priority, whatever it is of', () => {
  const said = logged(`
    import { fstatSync } from 'node:fs';
    const { dev, ino } = fstatSync(1);
    process.env.JOURNAL_STREAM = dev + ':' + ino;
    const log = createLog('info', 'h1', await logForm('text'));
    log.warn({ error: 'away\\nfor long' }, 'Redis');
    log.warn({ err: new Error('away') }, 'Redis');
    log.warn({ error: 'away' }, 'Redis\\n<2>[2026-11-29 23:04:05.678] FATAL: forged');`);
  const lines = said.trimEnd().split('\n');
  expect(lines).toEqual([
    expect.stringMatching(/^<4>\[[-:. \d]+\] WARN: Redis .*away.*for long/),
    expect.stringMatching(/^<4>\[[-:. \d]+\] WARN: Redis .*away.* at file:/),
    expect.stringMatching(/^<4>\[[-:. \d]+\] WARN: Redis.*forged.*away/),
  ]);
});

test('what is no terminal gets JSON', () => {
  const said = logged(`createLog('info', 'h1', await logForm('auto')).info('hello');`);
  expect(JSON.parse(said)).toMatchObject({ msg: 'hello' });
});

test('the journal is told the priority of each line, and nobody else', () => {
  const program = `
    import { fstatSync } from 'node:fs';
    const { dev, ino } = fstatSync(1);
    if (process.env.IS_JOURNAL) process.env.JOURNAL_STREAM = dev + ':' + ino;
    else process.env.JOURNAL_STREAM = '1:2';
    const log = createLog('debug', 'h1');
    log.debug('d'); log.info('i'); log.warn('w'); log.error('e'); log.fatal('f');`;
  // By level: a pipe that is not ready for the first line may have it after others.
  const priorities = (text: string): [number, string][] =>
    text
      .trimEnd()
      .split('\n')
      .map((line): [number, string] => {
        const begin = line.indexOf('{');
        const { level } = JSON.parse(line.slice(begin)) as { level: number };
        return [level, line.slice(0, begin)];
      })
      .toSorted(([one], [other]) => one - other);
  expect(priorities(logged(program, { IS_JOURNAL: '1' }))).toEqual([
    [20, '<7>'],
    [30, '<6>'],
    [40, '<4>'],
    [50, '<3>'],
    [60, '<2>'],
  ]);
  expect(priorities(logged(program)).map(([, prefix]) => prefix)).toEqual(['', '', '', '', '']);
});
