import { execFileSync, spawnSync } from 'node:child_process';
import { beforeEach, expect, test } from 'vitest';
import { requireTool } from '../support/tools.ts';
import { GOLDEN_ELEMENTS } from './golden-elements.ts';

// The stored bytes against those that nft sends here and now.

const NLMSG_HEADER_BYTES = 16;
const NFGENMSG_BYTES = 4;
const NLA_HEADER_BYTES = 4;
const NFT_MSG_NEWSETELEM = 0x0a0c;
const NFTA_SET_ELEM_LIST_ELEMENTS = 3;
const NLA_TYPE_MASK = 0x3fff;

const nft = (...words: string[]): string =>
  execFileSync(requireTool('nft'), words, { encoding: 'utf8' });

/** All bytes that a run of nft sent, message behind message. */
function sent(...words: string[]): Buffer {
  const trace = ['-qq', '-e', 'trace=sendmsg', '-e', 'write=all', '-s', '0'];
  const run = spawnSync(requireTool('strace'), [...trace, requireTool('nft'), ...words], {
    encoding: 'utf8',
  });
  // What is sent follows each call as a dump of 16 bytes a line; every call begins a message.
  const lines = run.stderr.split('\n');
  const dumped = lines.map((line) => /^ \| [0-9a-f]{5} {2}([0-9a-f ]{49})/.exec(line)?.[1] ?? '');
  return Buffer.from(dumped.join('').replaceAll(' ', ''), 'hex');
}

/** Length and type, as they begin both messages and attributes, here with the length first. */
function* parts(bytes: Buffer): Generator<Buffer> {
  for (let at = 0; at + NLMSG_HEADER_BYTES <= bytes.length;) {
    const length = bytes.readUInt32LE(at);
    yield bytes.subarray(at, at + length);
    at += (length + 3) & ~3;
  }
}

function elementsIn(message: Buffer): string[] {
  const found: string[] = [];
  for (let at = NLMSG_HEADER_BYTES + NFGENMSG_BYTES; at + NLA_HEADER_BYTES <= message.length;) {
    const length = message.readUInt16LE(at);
    const type = message.readUInt16LE(at + 2) & NLA_TYPE_MASK;
    if (type === NFTA_SET_ELEM_LIST_ELEMENTS) found.push(message.toString('hex', at, at + length));
    at += (length + 3) & ~3;
  }
  return found;
}

beforeEach(() => {
  nft('flush ruleset; add table inet t');
});

test.each(GOLDEN_ELEMENTS)(
  'nft sends $text the same way',
  ({ declaration, declared, text, hex }) => {
    nft(`add ${declaration.data === undefined ? 'set' : 'map'} inet t s ${declared}`);
    const messages = [...parts(sent(`add element inet t s { ${text} }`))];
    const elements = messages
      .filter((message) => message.readUInt16LE(4) === NFT_MSG_NEWSETELEM)
      .flatMap(elementsIn);
    expect(elements).toEqual([hex.join('')]);
  },
);
