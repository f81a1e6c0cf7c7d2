import { spawnSync } from 'node:child_process';
import { beforeAll, expect, test } from 'vitest';
import { requireTool } from '../support/tools.ts';
import { FIXTURE, type Golden } from './golden.ts';
import { GOLDEN_ADDRESSES } from './golden-addresses.ts';
import { GOLDEN_LINKS } from './golden-links.ts';

// The stored bytes against those that `ip` and `bridge` send here and now.

const NLMSG_HEADER_BYTES = 16;

/** Runs a command under strace; the bodies of the messages of one type that it sent, in hex. */
function sent(command: string, type: number): string[] {
  const [tool = '', ...args] = command.split(' ');
  const trace = ['-f', '-qq', '-e', 'trace=sendmsg', '-e', 'write=all', '-s', '0'];
  const run = spawnSync(requireTool('strace'), [...trace, requireTool(tool), ...args], {
    encoding: 'utf8',
  });
  const messages: string[] = [];
  let hex = '';
  for (const line of [...run.stderr.split('\n'), '']) {
    // What is sent follows each call as a dump of 16 bytes a line.
    const bytes = /^ \| [0-9a-f]{5} {2}([0-9a-f ]{49})/.exec(line)?.[1];
    if (bytes !== undefined) {
      hex += bytes.replaceAll(' ', '');
      continue;
    }
    const message = Buffer.from(hex, 'hex');
    hex = '';
    if (message.length >= NLMSG_HEADER_BYTES && message.readUInt16LE(4) === type) {
      messages.push(message.toString('hex', NLMSG_HEADER_BYTES));
    }
  }
  if (messages.length === 0) throw new Error(`${command} sent no ${type}: ${run.stderr}`);
  return messages;
}

function ip(words: string): void {
  const { status, stderr } = spawnSync(requireTool('ip'), words.split(' '), { encoding: 'utf8' });
  if (status !== 0) throw new Error(`ip ${words}: ${stderr}`);
}

beforeAll(() => FIXTURE.forEach(ip));

const cases = [...GOLDEN_LINKS, ...GOLDEN_ADDRESSES].map((one): [string, Golden] => [
  one.command,
  one,
]);

test.each(cases)('%s', (command, { type, hex }) => {
  expect(sent(command, type)).toContain(hex);
  if (command.endsWith('name vdel103')) ip('link set dev vdel103 group 0 name port1');
});
