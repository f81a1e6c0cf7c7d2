import { AckPolicy, type ConsumerConfig, RetentionPolicy, type StreamConfig } from 'nats';
import { expect, test } from 'vitest';
import {
  areCovered,
  consumerFlaw,
  eventStreamFlaw,
  jobStreamFlaw,
} from '#agent/bus/stream-flaws.ts';

const NEEDED = 'volt.net.v1.job.h1.*';
const stream = (more: Partial<StreamConfig>): StreamConfig =>
  ({
    name: 'S',
    subjects: ['volt.net.v1.job.*.*'],
    retention: RetentionPolicy.Workqueue,
    ...more,
  }) as StreamConfig;

test.each<[string, boolean]>([
  ['volt.net.v1.job.*.*', true],
  ['volt.net.v1.job.h1.*', true],
  ['volt.net.v1.>', true],
  ['>', true],
  ['volt.net.v1.job.h1.attach', false],
  ['volt.net.v1.job.h2.*', false],
  ['volt.net.v1.job.*', false],
  ['volt.net.v1.job.h1.*.>', false],
  ['other.job.*.*', false],
])('a stream on %s takes the jobs of h1: %s', (subject, covers) => {
  expect(areCovered({ subjects: ['none.of.it', subject] }, NEEDED)).toBe(covers);
});

test.each<[string, Partial<StreamConfig>, RegExp | undefined]>([
  ['as the agent makes it', {}, undefined],
  ['with other limits', { max_age: 1, max_bytes: 1, num_replicas: 3 }, undefined],
  ['with retention limits', { retention: RetentionPolicy.Limits }, /S has retention limits.*again/],
  [
    'with retention interest',
    { retention: RetentionPolicy.Interest },
    /S has retention int.*drops/,
  ],
  ['on other subjects', { subjects: ['a.*'] }, /S takes a\.\*, not volt\.net\.v1\.job\.h1\.\*/],
  ['without subjects', { subjects: [] }, /S takes no subjects/],
  ['that is a mirror', { mirror: { name: 'T' } }, /S is a mirror/],
  ['that is sealed', { sealed: true }, /S is sealed/],
  ['that confirms nothing', { no_ack: true }, /S has no_ack/],
])('a stream of jobs %s', (_, more, flaw) => {
  const found = jobStreamFlaw(stream(more), NEEDED);
  if (flaw === undefined) expect(found).toBeUndefined();
  else expect(found).toMatch(flaw);
});

test.each<[RetentionPolicy, RegExp | undefined]>([
  [RetentionPolicy.Limits, undefined],
  [RetentionPolicy.Interest, undefined],
  [RetentionPolicy.Workqueue, /S has retention workqueue, which gives each event to one/],
])('a stream of events with retention %s', (retention, flaw) => {
  const found = eventStreamFlaw(stream({ retention }), NEEDED);
  if (flaw === undefined) expect(found).toBeUndefined();
  else expect(found).toMatch(flaw);
});

test.each<[string, Partial<ConsumerConfig>, RegExp | undefined]>([
  ['as the agent makes it', {}, undefined],
  ['with other limits', { max_ack_pending: 10, ack_wait: 1 }, undefined],
  ['that pushes', { deliver_subject: 'x' }, /agent-h1 is a push consumer/],
  ['without acknowledgements', { ack_policy: AckPolicy.None }, /agent-h1 has ack_policy none/],
  ['that acknowledges all before', { ack_policy: AckPolicy.All }, /agent-h1 has ack_policy all/],
  [
    'of another host',
    { filter_subject: 'volt.net.v1.job.h2.*' },
    /agent-h1 delivers .*h2\.\*, not/,
  ],
  ['of all hosts', { filter_subject: '' }, /agent-h1 delivers everything, not/],
  ['without what jobs say', { headers_only: true }, /agent-h1 has headers_only/],
  ['that gives jobs up', { max_deliver: 3 }, /agent-h1 has max_deliver 3/],
])('a consumer %s', (_, more, flaw) => {
  const config: ConsumerConfig = {
    durable_name: 'agent-h1',
    ack_policy: AckPolicy.Explicit,
    filter_subject: NEEDED,
    max_deliver: -1,
    ...more,
  } as ConsumerConfig;
  const found = consumerFlaw(config, NEEDED);
  if (flaw === undefined) expect(found).toBeUndefined();
  else expect(found).toMatch(flaw);
});
