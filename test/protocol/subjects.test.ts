import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  DEFAULT_PREFIX,
  eventStreamOf,
  HOST_OPERATIONS,
  JOB_OPERATIONS,
  jobConsumer,
  jobMessageId,
  jobStreamOf,
  LEDGER_OPERATIONS,
  NETWORK_CHANGES,
  NETWORK_OPERATIONS,
  serviceNameOf,
  type Subject,
  subjects,
} from '#protocol/subjects.ts';
import { EVENT_TYPES } from '#protocol/events.ts';
import { thrownBy } from './thrown.ts';

const known = subjects();

test.for<[string, Subject]>([
  ['volt.net.v1.host.h1.attach', { kind: 'host', host: 'h1', operation: 'attach' }],
  ['volt.net.v1.host.h-1_x.check', { kind: 'host', host: 'h-1_x', operation: 'check' }],
  ['volt.net.v1.job.h1.detach', { kind: 'job', host: 'h1', operation: 'detach' }],
  ['volt.net.v1.network.put', { kind: 'network', operation: 'put' }],
  ['volt.net.v1.ledger.leases', { kind: 'ledger', operation: 'leases' }],
  [
    'volt.net.v1.event.h1.volt0.host-up',
    { kind: 'event', host: 'h1', network: 'volt0', type: 'host-up' },
  ],
  ['volt.net.v1.changed.volt0.leases', { kind: 'changed', network: 'volt0', change: 'leases' }],
  ['volt.net.v1.event.h1.-.host-up', { kind: 'event', host: 'h1', network: '-', type: 'host-up' }],
  // A newer agent may have more types.
  [
    'volt.net.v1.event.h1.volt0.moved',
    { kind: 'event', host: 'h1', network: 'volt0', type: 'moved' },
  ],
])('%s is read', ([subject, expected]) => {
  expect(known.match(subject)).toEqual(expected);
});

test.for([
  '',
  'volt.net.v1',
  'volt.net.v1.',
  'volt.net.v2.host.h1.attach',
  'volt.net.v11.host.h1.attach',
  'volt.net.v1.host.h1',
  'volt.net.v1.host.h1.attach.more',
  'volt.net.v1.host..attach',
  'volt.net.v1.host.h1.reboot',
  'volt.net.v1.job.h1.get',
  'volt.net.v1.network.toString',
  'volt.net.v1.event.h1.volt0',
  'volt.net.v1.changed.*.leases',
  'volt.net.v1.changed.volt0.all',
  'volt.net.v1.event.h1.VOLT0.attached',
  'volt.net.v1.event.h1.volt0.',
  'volt.net.v1.host.*.attach',
  'volt.net.v1.other.h1.attach',
  'x.volt.net.v1.host.h1.attach',
])('%j is none of ours', (subject) => {
  expect(known.match(subject)).toBeNull();
});

describe('builders', () => {
  test('what is built is read back, below any prefix', () => {
    const host = fc.stringMatching(/^[A-Za-z0-9_-]{1,64}$/);
    const network = fc.stringMatching(/^[a-z0-9][a-z0-9_-]{0,14}$/);
    const prefix = fc.stringMatching(/^[a-z][a-z0-9]{0,5}(\.[a-z0-9]{1,6}){0,3}$/);
    const subject = fc.oneof(
      fc.record({
        kind: fc.constant('host' as const),
        host,
        operation: fc.constantFrom(...HOST_OPERATIONS),
      }),
      fc.record({
        kind: fc.constant('job' as const),
        host,
        operation: fc.constantFrom(...JOB_OPERATIONS),
      }),
      fc.record({
        kind: fc.constant('network' as const),
        operation: fc.constantFrom(...NETWORK_OPERATIONS),
      }),
      fc.record({
        kind: fc.constant('ledger' as const),
        operation: fc.constantFrom(...LEDGER_OPERATIONS),
      }),
      fc.record({
        kind: fc.constant('changed' as const),
        network,
        change: fc.constantFrom(...NETWORK_CHANGES),
      }),
      fc.record({
        kind: fc.constant('event' as const),
        host,
        network: fc.oneof(network, fc.constant('-')),
        type: fc.constantFrom(...EVENT_TYPES),
      }),
    );
    fc.assert(
      fc.property(prefix, subject, (below, value) => {
        const table = subjects(below);
        expect(table.match(built(table, value))).toEqual(value);
      }),
    );
  });

  test.for(['', '*', '>', 'a.b', 'h1 ', 'h1\n', 'ä', 'x'.repeat(65)])(
    'host %j is refused: it would address somebody else, or everybody',
    (host) => {
      for (const build of [
        () => known.host(host, 'attach'),
        () => known.job(host, 'attach'),
        () => known.jobs(host),
        () => known.event(host, 'volt0', 'attached'),
        () => known.events({ host }),
      ]) {
        expect(thrownBy(build)).toMatchObject({
          code: 'INVALID_REQUEST',
          details: { path: 'host' },
        });
      }
    },
  );

  test.for(['', '*', 'a.b', 'VOLT', 'x'.repeat(16)])('network %j is refused', (network) => {
    expect(thrownBy(() => known.events({ network })).code).toBe('INVALID_REQUEST');
    expect(thrownBy(() => known.event('h1', network, 'attached')).code).toBe('INVALID_REQUEST');
  });

  test('filters leave open what is not named', () => {
    expect(known.events()).toBe('volt.net.v1.event.*.*.*');
    expect(known.events({ network: 'volt0' })).toBe('volt.net.v1.event.*.volt0.*');
    expect(known.events({ host: 'h1', type: 'failed' })).toBe('volt.net.v1.event.h1.*.failed');
    expect(known.changed('*', 'definition')).toBe('volt.net.v1.changed.*.definition');
    expect(known.jobs('h1')).toBe('volt.net.v1.job.h1.*');
    expect(known.allJobs()).toBe('volt.net.v1.job.*.*');
  });

  test('jobs have the names that JetStream knows them by', () => {
    expect(jobConsumer('h1')).toBe('agent-h1');
    expect(jobMessageId({ host: 'h1', operation: 'attach', requestId: 'r-1' })).toBe(
      'h1.attach.r-1',
    );
  });
});

describe('names of a fleet', () => {
  const namesOf = (prefix: string, host: string): string[] => [
    eventStreamOf(prefix),
    jobStreamOf(prefix),
    serviceNameOf(prefix),
    jobConsumer(host, prefix),
  ];

  test('with the default prefix are those of before names had it', () => {
    expect(namesOf(DEFAULT_PREFIX, 'h1')).toEqual([
      'VOLT_NET_EVENTS',
      'VOLT_NET_JOBS',
      'volt-network-agent',
      'agent-h1',
    ]);
  });

  test.each([
    ['acme.net', 'VOLT_NET_JOBS-acme-net', 'agent-acme-net--h1'],
    ['acme-net', 'VOLT_NET_JOBS-acme_-net', 'agent-acme_-net--h1'],
    ['acme_net', 'VOLT_NET_JOBS-acme__net', 'agent-acme__net--h1'],
    ['volt.net.v2', 'VOLT_NET_JOBS-volt-net-v2', 'agent-volt-net-v2--h1'],
  ])('with the prefix %s carry it', (prefix, stream, consumer) => {
    expect(jobStreamOf(prefix)).toBe(stream);
    expect(jobConsumer('h1', prefix)).toBe(consumer);
  });

  const prefixes = fc
    .array(fc.stringMatching(/^[ab_-]{1,4}$/), { minLength: 1, maxLength: 3 })
    .map((tokens) => tokens.join('.'));
  const hosts = fc.stringMatching(/^[ab_-]{1,5}$/);

  test('are no other fleet’s, and fit for NATS', () => {
    fc.assert(
      fc.property(prefixes, prefixes, hosts, hosts, (one, other, first, second) => {
        for (const name of namesOf(one, first)) expect(name).toMatch(/^[A-Za-z0-9_-]+$/);
        const isSame = one === other;
        expect(eventStreamOf(one) === eventStreamOf(other)).toBe(isSame);
        expect(jobStreamOf(one) === jobStreamOf(other)).toBe(isSame);
        expect(serviceNameOf(one) === serviceNameOf(other)).toBe(isSame);
        const isSameHost = isSame && first === second;
        expect(jobConsumer(first, one) === jobConsumer(second, other)).toBe(isSameHost);
      }),
      { numRuns: 20_000 },
    );
  });
});

function built(table: ReturnType<typeof subjects>, subject: Subject): string {
  switch (subject.kind) {
    case 'host':
      return table.host(subject.host, subject.operation);
    case 'job':
      return table.job(subject.host, subject.operation);
    case 'network':
      return table.network(subject.operation);
    case 'ledger':
      return table.ledger(subject.operation);
    case 'changed':
      return table.changed(subject.network, subject.change);
    default:
      return table.event(subject.host, subject.network, subject.type);
  }
}
