import { describe, expect, test } from 'vitest';
import { type Span, spansOf, waterfall } from '#protocol/waterfall.ts';

const span = (
  spanId: string,
  parentSpanId: string | undefined,
  [start, end]: readonly [number, number],
  failed = false,
): Span => ({
  traceId: 't',
  spanId,
  ...(parentSpanId !== undefined && { parentSpanId }),
  name: spanId,
  start: BigInt(start) * 1_000_000n,
  end: BigInt(end) * 1_000_000n,
  failed,
  attributes: {},
});

const name = (text: string): string => text.padEnd(46);

// 10 columns of bar: 46 for names, 10 for durations, 4 between.
const width = 70;

describe('waterfall', () => {
  test('rows are the tree, bars lie on the axis of the named span, its surroundings fill their row', () => {
    const spans = [
      span('kernel', 'attach', [105, 110]),
      span('attach', 'orchestrator', [100, 110]),
      span('ipam', 'attach', [100, 102], true),
      span('orchestrator', undefined, [0, 200]),
    ];
    const rows = waterfall(spans, { within: 'attach', width });
    expect(rows).toEqual([
      `${name('orchestrator')}  ━━━━━━━━━━  200.000 ms`,
      `${name('  attach')}  ━━━━━━━━━━   10.000 ms`,
      `${name('    ipam (failed)')}  ━━            2.000 ms`,
      `${name('    kernel')}       ━━━━━    5.000 ms`,
    ]);
  });

  test('a span without its parent stands at the top, and the shortest has a bar', () => {
    const rows = waterfall([span('lone', 'missing', [0, 0]), span('attach', undefined, [0, 10])], {
      within: 'attach',
      width,
    });
    expect(rows).toHaveLength(2);
    expect(rows[0]).toMatch(/^lone +━ +0\.000 ms$/);
  });
});

describe('OTLP', () => {
  test('spans are read from the JSON form, times as text or numbers', () => {
    const message = {
      resourceSpans: [
        {
          scopeSpans: [
            {
              spans: [
                {
                  traceId: 'a',
                  spanId: 'b',
                  name: 'attach',
                  startTimeUnixNano: '1767323045000000001',
                  endTimeUnixNano: '1767323045000000002',
                  status: { code: 2 },
                  attributes: [
                    { key: 'volt.request.id', value: { stringValue: 'r1' } },
                    { key: 'retries', value: { intValue: '3' } },
                  ],
                },
              ],
            },
          ],
        },
      ],
    };
    expect(spansOf(message)).toEqual([
      {
        traceId: 'a',
        spanId: 'b',
        name: 'attach',
        start: 1_767_323_045_000_000_001n,
        end: 1_767_323_045_000_000_002n,
        failed: true,
        attributes: { 'volt.request.id': 'r1', retries: '3' },
      },
    ]);
    expect(spansOf({})).toEqual([]);
    expect(spansOf(null)).toEqual([]);
  });
});
