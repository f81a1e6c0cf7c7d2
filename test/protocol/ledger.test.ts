import { describe, expect, test } from 'vitest';
import {
  ledgerCheckAnswerSchema,
  ledgerCheckRequestSchema,
  ledgerForgetRequestSchema,
  ledgerHostsRequestSchema,
  ledgerLeasesAnswerSchema,
  ledgerLeasesRequestSchema,
} from '#protocol/ledger.ts';
import { parseRequest } from '#protocol/parse.ts';
import { thrownBy } from './thrown.ts';

const REQUESTS = {
  leases: ledgerLeasesRequestSchema,
  hosts: ledgerHostsRequestSchema,
  forget: ledgerForgetRequestSchema,
  check: ledgerCheckRequestSchema,
} as const;
type Name = keyof typeof REQUESTS;

describe('requests about the ledger', () => {
  const GOOD: readonly [Name, object][] = [
    ['leases', {}],
    ['leases', { network: 'volt0', host: 'h1', state: 'suspect', limit: 5, cursor: 'h1 volt0 a' }],
    [
      'leases',
      { host: 'h'.repeat(64), cursor: `${'h'.repeat(64)} ${'n'.repeat(15)} ${'i'.repeat(64)}` },
    ],
    ['hosts', {}],
    ['hosts', { limit: 1, cursor: 'h1' }],
    ['forget', { host: 'h1' }],
    ['check', {}],
    ['check', { repair: true }],
  ];
  test.each(GOOD)('%s %j', (name, request) => {
    expect(parseRequest(REQUESTS[name], request)).toEqual(request);
  });

  const BAD: readonly [Name, object, string][] = [
    ['leases', { network: 'Volt0' }, 'network'],
    ['leases', { host: 'h 1' }, 'host'],
    ['leases', { state: 'lost' }, 'state'],
    ['leases', { limit: 0 }, 'limit'],
    ['leases', { cursor: 'x'.repeat(161) }, 'cursor'],
    ['leases', { nework: 'volt0' }, 'nework'],
    ['hosts', { limit: 1.5 }, 'limit'],
    ['forget', {}, 'host'],
    ['forget', { host: 'h1', force: true }, 'force'],
    ['check', { repair: 'yes' }, 'repair'],
  ];
  test.each(BAD)('%s %j is refused', (name, request, path) => {
    const error = thrownBy(() => parseRequest(REQUESTS[name], request));
    expect(error).toMatchObject({ code: 'INVALID_REQUEST', details: { path } });
  });
});

test('answers of a newer agent may say more', () => {
  const answer = { inSync: true, differences: [], checked: ['h1'], silent: [], truncated: false };
  expect(ledgerCheckAnswerSchema.parse({ ...answer, tookMs: 5 })).toEqual(answer);
  expect(ledgerLeasesAnswerSchema.parse({ leases: [], cursor: 'h9 ', more: 1 })).toEqual({
    leases: [],
    cursor: 'h9 ',
  });
});
