import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { NetworkNotices } from '#agent/bus/network-notices.ts';

function notices() {
  const published: string[] = [];
  let answered = 0;
  const changed: string[][] = [];
  const ours = new NetworkNotices({
    subjectPrefix: 'p',
    publish: (subject) => published.push(subject),
    concerns: (networks) => networks.has('ours'),
    onDefinition: () => (answered += 1),
    onChange: (networks) => changed.push([...networks]),
  });
  return { ours, published, changed, answered: () => answered };
}

test('changes at once are one notice, each network and kind of change by itself', async () => {
  const { ours, published } = notices();
  for (let n = 0; n < 100; n += 1) ours.add({ network: 'n0', change: 'leases' });
  ours.add({ network: 'n1', change: 'leases' });
  ours.add({ network: 'n0', change: 'definition' });
  expect(published).toEqual([]);
  await sleep(60);
  expect(published).toEqual([
    'p.changed.n0.leases',
    'p.changed.n1.leases',
    'p.changed.n0.definition',
  ]);
  ours.add({ network: 'n0', change: 'leases' });
  await sleep(60);
  expect(published).toHaveLength(4);
});

test('a storm of notices is answered once, and those of networks of others not at all', async () => {
  const { ours, changed, answered } = notices();
  expect(ours.subject).toBe('p.changed.*.definition');
  ours.hear('p.changed.theirs.definition');
  ours.hear('p.event.h1.ours.attached');
  ours.hear('no subject of ours');
  await sleep(60);
  expect(answered()).toBe(0);
  for (let n = 0; n < 1_000; n += 1)
    ours.hear(`p.changed.${n % 2 === 0 ? 'ours' : 'other'}.definition`);
  await sleep(60);
  expect(answered()).toBe(1);
  // Leases are nothing to read definitions for.
  ours.hear('p.changed.ours.leases');
  await sleep(60);
  expect(answered()).toBe(1);
  expect(changed).toEqual([['theirs'], ['ours', 'other'], ['ours']]);
});
