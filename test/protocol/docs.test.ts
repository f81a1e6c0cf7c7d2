import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { attachRequestSchema, detachRequestSchema } from '#protocol/attachment.ts';
import {
  decodeAnswer,
  encodeAnswer,
  MAX_ANSWER_BYTES,
  MAX_PAYLOAD_BYTES,
} from '#protocol/envelope.ts';
import { EVENT_TYPES, eventHeaders } from '#protocol/events.ts';
import { parseNetwork } from '#protocol/network.ts';
import { parseRequest } from '#protocol/parse.ts';
import { subjects } from '#protocol/subjects.ts';
import { VOLT0 } from './samples.ts';

// A stranger writes a client from docs/protocol.md alone. What it says is held against the source here.
const page = readFileSync(fileURLToPath(import.meta.resolve('../../docs/protocol.md')), 'utf8');

const blocks = [...page.matchAll(/```(\w+)\n([^`]*)```/g)].map(([, language = '', text = '']) => ({
  language,
  text,
}));

/** The code words in the first column of the n-th table below a heading. */
function firstColumn(heading: string, table = 0): string[] {
  const section = page.split(/^## /m).find((one) => one.startsWith(`${heading}\n`)) ?? '';
  const rows = section.split('\n\n').filter((part) => part.startsWith('|'))[table] ?? '';
  return rows
    .split('\n')
    .slice(2)
    .flatMap((row) => [...(row.split('|')[1] ?? '').matchAll(/`([^`]+)`/g)])
    .map(([, word = '']) => word);
}

describe('examples', () => {
  const pairs = blocks
    .map(({ language, text }, index) => ({ language, text, before: blocks[index - 1]?.text ?? '' }))
    .filter(({ language }) => language === 'hex')
    .map(({ text, before }) => ({ hex: text.replaceAll(/\s/g, ''), value: parsed(before) }));

  test('there are four in bytes', () => {
    expect(pairs).toHaveLength(4);
  });

  test.for(pairs)('$hex is the map above it', ({ hex, value }) => {
    expect(decodeAnswer(Buffer.from(hex, 'hex'))).toEqual(value);
    expect(Buffer.from(encodeAnswer(value)).toString('hex')).toBe(hex);
  });

  test('network, attach and detach are taken', () => {
    const [network, attach, detach] = blocks
      .filter(({ language }) => language === 'json')
      .map(({ text }) => parsed(text));
    expect(network).toEqual(VOLT0);
    expect(parseNetwork(network).network).toBe('volt0');
    expect(parseRequest(attachRequestSchema, attach)).toMatchObject({ id: 'att-1' });
    expect(parseRequest(detachRequestSchema, detach)).toEqual({ id: 'att-1' });
  });
});

describe('tables', () => {
  // Tables of keys and errors are made of the source: test/docs/reference.test.ts.
  test.for([
    ['Events', 1, EVENT_TYPES],
    [
      'Events',
      0,
      [
        ...Object.keys(
          eventHeaders({ id: '', type: '', source: '', subject: '', time: '', traceparent: '' }),
        ),
        'Nats-Msg-Id',
      ],
    ],
  ] as const)('%s, table %d, has every key and no other', ([heading, table, keys]) => {
    expect(new Set(firstColumn(heading, table))).toEqual(new Set<string>(keys));
  });

  test('subjects are those that are built', () => {
    const known = subjects();
    const documented = page.match(/`volt\.net\.v1\.[^`]+`/g)?.map((one) => one.slice(1, -1));
    expect(documented).toEqual(
      expect.arrayContaining([
        known.host('h', 'attach').replace('.h.', '.<host>.'),
        known.job('h', 'attach').replace('.h.', '.<host>.'),
        known.network('put'),
        known.ledger('leases'),
        known.event('h', 'n', 't').replace('.h.n.t', '.<host>.<network>.<type>'),
      ]),
    );
  });

  test('limits are those of the source', () => {
    expect(page).toContain(MAX_PAYLOAD_BYTES.toLocaleString('en'));
    expect(page).toContain(MAX_ANSWER_BYTES.toLocaleString('en'));
  });
});

function parsed(text: string): unknown {
  return JSON.parse(text);
}
