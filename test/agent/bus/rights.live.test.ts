import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect, type NatsConnection } from 'nats';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { decodeAnswer } from '#protocol/envelope.ts';
import { until } from '../../support/agent.ts';
import { startBus, type TestBus } from '../../support/bus.ts';
import { type Server, startNats } from '../../support/servers.ts';

// Rights of the agent's user that go and come while it runs: what it lost it has again when it may, without a restart.

const ALL = '">"';
// A reload takes JetStream away that the file does not name.
const folder = mkdtempSync(join(tmpdir(), 'volt-test-rights-'));
const configFile = join(folder, 'nats.conf');
const denied = (subjects: string): string => (subjects === '' ? '' : `, deny: [${subjects}]`);
const rights = ({ publish = ALL, subscribe = ALL, deny = '', denySubscribe = '' } = {}): string => `
jetstream { store_dir: "${folder}" }
authorization { users: [
  { user: boss, password: boss }
  { user: agent, password: agent, permissions: {
    publish: { allow: [${publish}]${denied(deny)} }
    subscribe: { allow: ["_INBOX.>", "$SRV.>", "volt.net.v1.changed.*.*", ${subscribe}]${denied(denySubscribe)} }
  } }
] }`;
const GET = '"volt.net.v1.host.h1.get host-h1"';
const LIST = '"volt.net.v1.host.h1.list host-h1"';

let nats: Server;
let boss: NatsConnection;

beforeAll(async () => {
  writeFileSync(configFile, rights());
  nats = await startNats({ configFile });
  boss = await connect({ servers: nats.url, user: 'boss', pass: 'boss' });
});
afterAll(async () => {
  await boss.close();
  await nats.stop();
  rmSync(folder, { recursive: true });
});
beforeEach(() => allow());

/** The server has these rights when this resolves: it reloads them on SIGHUP, and says when. */
function allow(given: Parameters<typeof rights>[0] = {}): void {
  writeFileSync(configFile, rights(given));
  process.kill(nats.pid, 'SIGHUP');
}

const agent = (): TestBus => startBus({ url: nats.url.replace('nats://', 'nats://agent:agent@') });

async function answers(operation: string): Promise<boolean> {
  try {
    const { data } = await boss.request(`volt.net.v1.host.h1.${operation}`, '', { timeout: 1_000 });
    return JSON.stringify(decodeAnswer(data)).includes('h1');
  } catch {
    return false;
  }
}

test('a subject that is refused keeps no other from being served, and is served once it may be', async () => {
  allow({ subscribe: GET });
  await sleep(500);
  await using bus = agent();
  await until('get is served', () => answers('get'));
  expect(await answers('list')).toBe(false);
  expect(bus.problems()).toContain('subscription-refused volt.net.v1.host.h1.list');
  expect(bus.bus.requestProblem).toContain('volt.net.v1.host.h1.list');
  allow({ subscribe: `${GET}, ${LIST}` });
  await until('list is served', () => answers('list'));
  await until('nothing is wrong', () => bus.problems().length === 0);
  expect(bus.bus.requestProblem).toBeUndefined();
});

test('rights that are taken and given back leave the agent as it was, and each request is answered once', async () => {
  await using bus = agent();
  await until('it is served', () => answers('get'));
  for (let round = 0; round < 2; round += 1) {
    allow({ subscribe: LIST });
    await until('it is told', () =>
      bus.problems().includes('subscription-refused volt.net.v1.host.h1.get'),
    );
    expect(await answers('get')).toBe(false);
    expect(await answers('list')).toBe(true);
    allow();
    await until('it is served again', () => answers('get'));
    await until('nothing is wrong', () => bus.problems().length === 0);
  }
  for (const subject of ['volt.net.v1.host.h1.get', '$SRV.PING.volt-network-agent']) {
    let heard = 0;
    for await (const _ of await boss.requestMany(subject, '', { maxWait: 500 })) heard += 1;
    expect(heard).toBe(1);
  }
});

test('a notice that is not heard is told apart from requests that are not', async () => {
  await using bus = agent();
  await until('it is served', () => answers('get'));
  allow({ denySubscribe: '"volt.net.v1.changed.>"' });
  const notices = 'volt.net.v1.changed.*.definition';
  await until('it is told', () => bus.problems().includes(`fleet-unheard ${notices}`));
  expect(bus.problems()).toEqual([`fleet-unheard ${notices}`]);
  expect(await answers('get')).toBe(true);
  allow();
  await until('nothing is wrong', () => bus.problems().length === 0);
});

test('very many answers that are refused are one problem', async () => {
  await using bus = agent();
  await until('it is served', () => answers('get'));
  allow({ deny: '"_INBOX.>"' });
  await until('an answer is refused', async () => {
    await answers('get');
    return bus.problems().some((problem) => problem.startsWith('publish-refused _INBOX.'));
  });
  for (let n = 0; n < 200; n += 1) {
    boss.publish('volt.net.v1.host.h1.get', '', { reply: `_INBOX.caller${n}.${n}` });
  }
  await boss.flush();
  await until('all are answered', async () => !(await answers('get')));
  const refused = bus.problems().filter((problem) => problem.startsWith('publish-refused'));
  expect(refused).toEqual([expect.stringMatching(/^publish-refused _INBOX\.\w+\.>$/)]);
});

test('the question for jobs that is refused is told, and asked again', async () => {
  await using bus = agent();
  await until('jobs are taken', () => bus.bus.jobProblem === undefined);
  const next = '$JS.API.CONSUMER.MSG.NEXT.VOLT_NET_JOBS.agent-h1';
  allow({ deny: `"${next}"` });
  await until('it is told', () => bus.problems().includes(`publish-refused ${next}`), 60_000);
  await until('as the reason, too', () => bus.problems().includes('jobs-not-taken'));
  allow();
  await until('jobs are taken again', () => bus.problems().length === 0);
  await boss.jetstream().publish('volt.net.v1.job.h1.attach', '');
  await until('the job is taken', () => bus.jobs.length === 1);
});

test('events that are refused are told by their subject, and it ends with the next that is stored', async () => {
  await using bus = agent();
  await until('it is connected', () => bus.bus.state === 'connected');
  allow({ deny: '"volt.net.v1.event.>"' });
  await until('it is told', async () => {
    await bus.publish('attached', 'e1').catch(() => {});
    return bus.problems().includes('publish-refused volt.net.v1.event.h1.volt0.attached');
  });
  allow();
  await until('it is stored', () => bus.publish('attached', 'e1').then(() => true));
  expect(bus.problems()).toEqual([]);
});
