import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { connect, headers } from 'nats';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { VoltNetworkClient } from '#protocol/client.ts';
import { until } from '../../support/agent.ts';
import { type Hosts, startHosts } from '../../support/hosts.ts';
import { type Server, startNats, startRedis } from '../../support/servers.ts';

// `voltnet job`, as installed: what waits in the job stream of a real nats-server.

const VOLTNET = fileURLToPath(new URL('../../../deploy/bin/voltnet', import.meta.url));
const DAY_MS = 86_400_000;

interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

const voltnetAt = (url: string, ...words: string[]): Ended =>
  spawnSync(VOLTNET, words, {
    encoding: 'utf8',
    env: { ...process.env, VOLT_NET_NATS_URL: url, VOLT_NET_HOST: 'h1' },
  });

interface Listed {
  readonly hosts: readonly {
    readonly host: string;
    readonly since?: string;
    readonly ledger?: string;
  }[];
  readonly maxAgeSeconds: number;
}

const listedAt = (url: string, ...words: string[]): Listed =>
  JSON.parse(voltnetAt(url, 'job', 'list', '--json', ...words).stdout) as Listed;

describe('in a fleet', () => {
  let redis: Server;
  let fleet: Hosts;
  const voltnet = (...words: string[]): Ended => voltnetAt(fleet.nats.url, ...words);

  beforeAll(async () => {
    redis = await startRedis();
    fleet = await startHosts({ hosts: ['h1', 'h2'], config: { redis: { url: redis.url } } });
    await fleet.agent('h2').kill();
    for (const [host, jobs] of Object.entries({ h1: 2, h2: 1, h9: 3 })) {
      for (let n = 0; n < jobs; n += 1) await fleet.client.submitDetach(host, { id: `vm-${n}` });
    }
    await until('h1 has done its jobs, and h2 is suspect', () => {
      const { hosts } = listedAt(fleet.nats.url);
      return hosts.length === 2 && hosts[0]?.ledger === 'suspect';
    });
  });
  afterAll(async () => {
    await fleet[Symbol.asyncDispose]();
    await redis.stop();
  });

  test('job list says how many jobs wait for which hosts, and who is unknown', () => {
    const { hosts, maxAgeSeconds } = listedAt(fleet.nats.url);
    const since = expect.any(String) as string;
    expect(hosts).toEqual([
      { host: 'h2', jobs: 1, since, consumer: true, ledger: 'suspect' },
      { host: 'h9', jobs: 3, since, consumer: false, ledger: 'unknown' },
    ]);
    expect(maxAgeSeconds).toBe(43_200);
    const [first] = hosts;
    expect(Math.abs(Date.now() - Date.parse(first?.since ?? ''))).toBeLessThan(DAY_MS);
    const { stdout, stderr } = voltnet('job', 'list');
    expect(stdout).toMatch(
      /^HOST +JOBS +OLDEST +CONSUMER +LEDGER\nh2 +1 +\S+ ago +yes +suspect\nh9 +3 +\S+ ago +no +unknown\n$/,
    );
    expect(stderr).toBe('jobs for an unknown host wait until its agent comes, 12 hours at most\n');
  });

  test('of one host it says that none wait', () => {
    expect(listedAt(fleet.nats.url, '--host', 'h1').hosts).toEqual([
      { host: 'h1', jobs: 0, consumer: true, ledger: 'live' },
    ]);
    expect(listedAt(fleet.nats.url, '--host', 'h9').hosts).toMatchObject([{ host: 'h9', jobs: 3 }]);
  });

  test('job delete takes the jobs of the host that is named, and asks twice', () => {
    expect(voltnet('job', 'delete', '--yes').status).toBe(2);
    const asked = voltnet('job', 'delete', '--host', 'h9');
    expect(asked.status).toBe(2);
    expect(asked.stderr).toContain('--yes');
    expect(listedAt(fleet.nats.url, '--host', 'h9').hosts).toMatchObject([{ jobs: 3 }]);
    expect(voltnet('job', 'delete', '--host', 'h9', '--yes')).toMatchObject({
      status: 0,
      stdout: '3 jobs of h9 deleted\n',
    });
    expect(listedAt(fleet.nats.url).hosts.map(({ host }) => host)).toEqual(['h2']);
  });
});

describe('where JetStream does not tell', () => {
  const servers: Server[] = [];
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-job-'));
  afterAll(async () => {
    await Promise.all(servers.map((server) => server.stop()));
    rmSync(folder, { recursive: true, force: true });
  });
  const started = async (options: Parameters<typeof startNats>[0]): Promise<Server> => {
    const server = await startNats(options);
    servers.push(server);
    return server;
  };
  const as = ({ port }: Server, user: string): string => `nats://${user}:secret@127.0.0.1:${port}`;

  test('it says so: no stream, no JetStream', async () => {
    const { url } = await started({});
    expect(voltnetAt(url, 'job', 'list')).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/no stream VOLT_NET_JOBS.*voltnet setup/) as string,
    });
    const configFile = join(folder, 'nats.conf');
    writeFileSync(configFile, 'max_payload: 1MB\n');
    const without = await started({ configFile });
    for (const words of [
      ['job', 'list'],
      ['job', 'delete', '--host', 'h9', '--yes'],
    ]) {
      expect(voltnetAt(without.url, ...words)).toMatchObject({
        status: 3,
        stderr: expect.stringContaining('JetStream is off') as string,
      });
    }
  });

  test('it says so: a user without rights; one who may not read messages sees no age', async () => {
    const allowed = ['$JS.API.STREAM.INFO.*', '$JS.API.CONSUMER.INFO.>'];
    const userOf = (user: string, publish: readonly string[]): string =>
      `{ user: ${user}, password: secret, permissions: { publish: ${JSON.stringify(publish)}, subscribe: ["_INBOX.>"] } }`;
    const users = [userOf('none', ['volt.>']), userOf('some', allowed), userOf('all', ['>'])];
    const server = await started({ config: `authorization { users: [${users.join(', ')}] }` });
    expect(voltnetAt(as(server, 'all'), 'setup', 'h1').status).toBe(0);
    const connection = await connect({ servers: server.url, user: 'all', pass: 'secret' });
    await new VoltNetworkClient({ connection, headers }).submitDetach('h1', { id: 'vm-1' });
    await connection.close();
    expect(voltnetAt(as(server, 'none'), 'job', 'list')).toMatchObject({
      status: 7,
      stderr: expect.stringMatching(/may not ask JetStream.*STREAM\.INFO\.VOLT_NET_JOBS/) as string,
    });
    expect(listedAt(as(server, 'some')).hosts).toEqual([{ host: 'h1', jobs: 1, consumer: true }]);
    expect(voltnetAt(as(server, 'some'), 'job', 'list')).toMatchObject({
      status: 0,
      stderr: expect.stringContaining('the ledger was not asked') as string,
    });
    expect(voltnetAt(as(server, 'some'), 'job', 'delete', '--host', 'h1', '--yes').status).toBe(7);
    expect(listedAt(as(server, 'all')).hosts).toMatchObject([{ host: 'h1', jobs: 1 }]);
  });
});
