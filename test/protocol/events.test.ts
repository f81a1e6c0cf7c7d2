import { describe, expect, test } from 'vitest';
import { eventBodySchemas } from '#protocol/event-bodies.ts';
import { EVENT_TYPES, eventHeaders, eventId } from '#protocol/events.ts';
import { attachment } from './samples.ts';

describe('eventId', () => {
  test('is fixed, so that agents of all versions give one outcome one id', () => {
    // printf '["h1","attach","r-1"]' | sha256sum | cut -c1-32
    expect(eventId({ host: 'h1', operation: 'attach', requestId: 'r-1' })).toBe(GOLDEN_ID);
  });

  test('differs as soon as one part does, also where the parts joined are the same', () => {
    const ids = [
      { host: 'h1', operation: 'attach', requestId: 'r-1' },
      { host: 'h2', operation: 'attach', requestId: 'r-1' },
      { host: 'h1', operation: 'detach', requestId: 'r-1' },
      { host: 'h1', operation: 'attach', requestId: 'r-2' },
      { host: 'h1a', operation: 'ttach', requestId: 'r-1' },
      { host: 'h1', operation: 'attachr', requestId: '-1' },
    ].map(eventId);
    expect(new Set(ids).size).toBe(ids.length);
  });
});

describe('eventHeaders', () => {
  const event = {
    id: 'e-1',
    type: 'attached',
    source: '/volt/network/h1',
    subject: 'att-1',
    time: '2026-01-02T03:04:05.678Z',
  };

  test('are those of CloudEvents 1.0 in NATS binary mode', () => {
    expect(eventHeaders(event)).toEqual({
      'ce-specversion': '1.0',
      'ce-id': 'e-1',
      'ce-type': 'volt.net.attached',
      'ce-source': '/volt/network/h1',
      'ce-subject': 'att-1',
      'ce-time': '2026-01-02T03:04:05.678Z',
      'ce-datacontenttype': 'application/msgpack',
    });
  });

  test('carry the trace of the request, where there is one', () => {
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
    expect(eventHeaders({ ...event, traceparent, tracestate: 'a=b' })).toMatchObject({
      traceparent,
      tracestate: 'a=b',
    });
  });
});

describe('eventBodySchemas', () => {
  const outcome = { requestId: 'r-1', durationMs: { ipam: 0.4, kernel: 1.1, publish: 2 } };

  test('there is one for each type', () => {
    expect(Object.keys(eventBodySchemas).toSorted()).toEqual(EVENT_TYPES.toSorted());
  });

  test.for([
    ['attached', { ...attachment, ...outcome }],
    ['detached', { ...attachment, state: 'detached', reason: 'requested', ...outcome }],
    [
      'failed',
      {
        error: { code: 'UNKNOWN_NETWORK', message: 'there is no network x', retryable: false },
        operation: 'attach',
        request: { id: 'att-1' },
        ...outcome,
      },
    ],
    ['network-changed', { network: { network: 'volt0' }, revision: 1, created: true, ...outcome }],
    ['network-changed', { network: 'volt0', deleted: true, ...outcome }],
    [
      'host-up',
      {
        host: 'h1',
        bootId: '2f0e',
        before: 'live',
        rebooted: false,
        kept: [],
        released: ['att-1'],
        ...outcome,
      },
    ],
    ['suspect', { host: 'h1', ...outcome }],
    ['host-down', { host: 'h1', reason: 'forgotten', released: 2, ...outcome }],
    ['recovering', { epoch: '7', awaiting: ['h1'], ...outcome }],
    ['recovered', { epoch: '7', missed: [], ...outcome }],
  ] as const)('%s: the body is taken, with a key of a newer agent too', ([type, body]) => {
    expect(eventBodySchemas[type].parse({ ...body, newer: 1 })).toMatchObject(body);
  });

  test('a body without its request id is none', () => {
    expect(eventBodySchemas.attached.safeParse(attachment).success).toBe(false);
  });
});

const GOLDEN_ID = '1b551c7685ffcaae172c8bfb8c516f82';
