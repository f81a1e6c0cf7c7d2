import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { fitting } from '#agent/storage/events.ts';
import { encode, MAX_PAYLOAD_BYTES } from '#protocol/envelope.ts';

const DURATIONS = { durationMs: { ipam: 1, kernel: 2, publish: 3 } };

describe('the body of an event', () => {
  test('goes as it is where there is room', () => {
    const body = { id: 'a', request: { labels: { a: 'b'.repeat(1_000) } } };
    expect(fitting(body)).toBe(body);
  });

  test('has its request cut where that is too large, and says so', () => {
    const request = { id: 'a', requestId: 'r', labels: { a: 'b'.repeat(70_000) } };
    const error = { code: 'UNKNOWN_NETWORK', message: 'there is no network x', retryable: false };
    const body = { error, operation: 'attach', request, requestId: 'r' };
    expect(fitting(body)).toEqual({
      ...body,
      request: { id: 'a', requestId: 'r' },
      truncated: ['request'],
    });
  });

  test('of a large network keeps its name', () => {
    const network = { network: 'n', reservations: { a: 'b'.repeat(200_000) } };
    expect(fitting({ network, revision: 4, created: true })).toEqual({
      network: { network: 'n' },
      revision: 4,
      created: true,
      truncated: ['network'],
    });
  });

  test('fits a server that takes less', () => {
    const labels = Object.fromEntries(Array.from({ length: 64 }, (_, n) => [n, 'x'.repeat(256)]));
    const fit = fitting({ id: 'a', labels }, 8_192);
    expect(fit).toMatchObject({ id: 'a', truncated: ['labels'] });
    expect(encode({ ...fit, ...DURATIONS }).byteLength).toBeLessThanOrEqual(8_192);
  });

  test('of anything can be published', () => {
    const text = fc.oneof(fc.string(), fc.constant('\u{1f300}'.repeat(6_000)));
    const value = fc.letrec((tie) => ({
      value: fc.oneof({ maxDepth: 10 }, text, fc.integer(), tie('list'), tie('map')),
      list: fc.array(tie('value')),
      map: fc.dictionary(text, tie('value')),
    })).value;
    fc.assert(
      fc.property(fc.dictionary(fc.string(), value, { maxKeys: 12 }), (body) => {
        const bytes = encode({ ...fitting({ ...body, id: 'a' }), ...DURATIONS });
        expect(bytes.byteLength).toBeLessThanOrEqual(MAX_PAYLOAD_BYTES);
      }),
      { numRuns: 50 },
    );
  });
});
