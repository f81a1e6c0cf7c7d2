import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { NetworkNotices } from '#agent/bus/network-notices.ts';

function doorbell() {
  const rung: string[] = [];
  let answered = 0;
  const changed: string[][] = [];
  const bell = new NetworkNotices({
    subjectPrefix: 'p',
    publish: (subject) => rung.push(subject),
    concerns: (networks) => networks.has('ours'),
    onDefinition: () => (answered += 1),
    onChange: (networks) => changed.push([...networks]),
  });
  return { bell, rung, changed, answered: () => answered };
}

test('what changes at once rings once, each network and kind of change by itself', async () => {
  const { bell, rung } = doorbell();
  for (let n = 0; n < 100; n += 1) bell.ring({ network: 'n0', change: 'leases' });
  bell.ring({ network: 'n1', change: 'leases' });
  bell.ring({ network: 'n0', change: 'definition' });
  expect(rung).toEqual([]);
  await sleep(60);
  expect(rung).toEqual(['p.changed.n0.leases', 'p.changed.n1.leases', 'p.changed.n0.definition']);
  bell.ring({ network: 'n0', change: 'leases' });
  await sleep(60);
  expect(rung).toHaveLength(4);
});

test('a storm of doorbells is answered once, and those of networks of others not at all', async () => {
  const { bell, changed, answered } = doorbell();
  expect(bell.subject).toBe('p.changed.*.definition');
  bell.hear('p.changed.theirs.definition');
  bell.hear('p.event.h1.ours.attached');
  bell.hear('no subject of ours');
  await sleep(60);
  expect(answered()).toBe(0);
  for (let n = 0; n < 1_000; n += 1)
    bell.hear(`p.changed.${n % 2 === 0 ? 'ours' : 'other'}.definition`);
  await sleep(60);
  expect(answered()).toBe(1);
  // Leases are nothing to read definitions for.
  bell.hear('p.changed.ours.leases');
  await sleep(60);
  expect(answered()).toBe(1);
  expect(changed).toEqual([['theirs'], ['ours', 'other'], ['ours']]);
});
