import { expect, test } from 'vitest';
import { parseTraceContext } from '#protocol/trace-context.ts';

const TRACEPARENT = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';

test('a trace context is carried on as it came', () => {
  const given = { traceparent: TRACEPARENT, tracestate: 'a=1,b=2' };
  expect(parseTraceContext(given)).toEqual(given);
});

test.for([
  ['', 'nothing'],
  [`ff${TRACEPARENT.slice(2)}`, 'version ff'],
  [TRACEPARENT.toUpperCase(), 'upper case'],
  [`00-${'0'.repeat(32)}-b7ad6b7169203331-01`, 'a trace of zeros'],
  [`00-0af7651916cd43dd8448eb211c80319c-${'0'.repeat(16)}-01`, 'a span of zeros'],
  [`${TRACEPARENT}-more`, 'more than a traceparent'],
  [`${TRACEPARENT}\n`, 'a line feed'],
  ['0'.repeat(65_536), 'no end'],
])('%j is no traceparent: %s', ([traceparent]) => {
  expect(parseTraceContext({ traceparent, tracestate: 'a=1' })).toEqual({});
});

test.for(['', 'a=\u00e4', 'a=1\r\nb: 2', 'a=1,'.repeat(200)])(
  '%j is no tracestate',
  (tracestate) => {
    expect(parseTraceContext({ traceparent: TRACEPARENT, tracestate })).toEqual({
      traceparent: TRACEPARENT,
    });
  },
);
