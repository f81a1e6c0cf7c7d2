import { execFileSync } from 'node:child_process';
import { globSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { connect, headers, type JetStreamManager, type NatsConnection } from 'nats';
import { afterAll, beforeAll, test } from 'vitest';
import { VoltNetworkClient } from '#protocol/client.ts';
import type { Condition, ConditionName } from '#protocol/conditions.ts';
import { type RunningAgent, startAgent, until } from '../../support/agent.ts';
import { ip } from '../../support/kernel.ts';
import { freePort, type Server, startNats, startRedis } from '../../support/servers.ts';
import { VOLT0 } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// Each part that an agent needs is taken away in turn. Status, log and the metadata of the service say which it is and
// why, and that it is over.

const PASSWORD = 'correct-horse';
const FOLDER = mkdtempSync(join(tmpdir(), 'volt-test-conditions-'));
const FILES = { nats: join(FOLDER, 'nats.conf'), password: join(FOLDER, 'password') };

let nats: Server;
let redis: Server;
let agent: RunningAgent;
/** Of another user than the agent. */
let connection: NatsConnection;
let manager: JetStreamManager;
let client: VoltNetworkClient;

interface NatsSettings {
  readonly password?: string;
  readonly jetStream?: boolean;
  readonly deny?: { readonly subscribe?: string; readonly publish?: string };
}

/** The configuration of nats-server: `deny` and `password` are the agent's. */
function configureNats({ password = PASSWORD, jetStream = true, deny = {} }: NatsSettings): void {
  const rights = Object.entries(deny).map(([what, subject]) => `${what}: { deny: "${subject}" }`);
  const lines = [
    ...(jetStream ? [`jetstream { store_dir: "${join(FOLDER, 'jetstream')}" }`] : []),
    'authorization { users: [',
    `  { user: agent, password: "${password}", permissions: { ${rights.join(', ')} } }`,
    '  { user: test, password: test }',
    '] }',
  ];
  writeFileSync(FILES.nats, lines.join('\n'));
}

/** The server reads its configuration anew, and ends what it does not allow any more. */
function reconfigureNats(settings: NatsSettings): () => void {
  configureNats(settings);
  process.kill(nats.pid, 'SIGHUP');
  return () => {
    configureNats({});
    process.kill(nats.pid, 'SIGHUP');
  };
}

beforeAll(async () => {
  configureNats({});
  writeFileSync(FILES.password, PASSWORD);
  mkdirSync(join(FOLDER, 'jetstream'));
  const port = await freePort();
  [nats, redis] = await Promise.all([startNats({ port, configFile: FILES.nats }), startRedis()]);
  agent = await startAgent({
    config: {
      nats: { url: nats.url, username: 'agent', passwordFile: FILES.password },
      redis: { url: redis.url },
      reconcileSeconds: 2,
    },
  });
  await agent.ready();
  connection = await connect({
    ...{ servers: nats.url, user: 'test', pass: 'test' },
    ...{ maxReconnectAttempts: -1, reconnectTimeWait: 100 },
  });
  manager = await connection.jetstreamManager({ checkAPI: false });
  client = new VoltNetworkClient({ connection, headers });
  await client.putNetwork({ ...VOLT0 });
  await until('nothing is wrong', async () => (await conditions()).length === 0);
});

afterAll(async () => {
  await connection.close();
  await agent.stop();
  await Promise.all([nats.stop(), redis.stop()]);
  rmSync(FOLDER, { recursive: true });
});

async function conditions(): Promise<readonly Condition[]> {
  return (await agent.health())['conditions'] as readonly Condition[];
}

/** As the metadata of the service has them. */
async function announced(): Promise<readonly Pick<Condition, 'name' | 'reason'>[]> {
  const answer = await connection.request('$SRV.INFO.volt-network-agent', '', { timeout: 1_000 });
  const { metadata } = answer.json<{ metadata: { conditions: string } }>();
  return JSON.parse(metadata.conditions) as readonly Condition[];
}

const logged = (): readonly { condition?: string; reason?: string; msg: string }[] =>
  agent
    .output()
    .split('\n')
    .flatMap((line) => (line.startsWith('{') && line.endsWith('}') ? [JSON.parse(line)] : []));

async function redisCommand(...command: [string, ...string[]]): Promise<unknown> {
  const admin = new Redis(redis.url, { lazyConnect: true, maxRetriesPerRequest: 1 });
  try {
    await admin.connect();
    return await admin.call(...command);
  } finally {
    admin.disconnect();
  }
}

const mount = (...args: string[]): void => void execFileSync(requireTool('mount'), args);
const nft = (...args: string[]): void => void execFileSync(requireTool('nft'), args);

async function startOtherNats(settings: NatsSettings): Promise<void> {
  await nats.kill();
  configureNats(settings);
  await nats.restart();
}

interface Case {
  readonly name: string;
  readonly condition: ConditionName;
  readonly reason: RegExp;
  /** Answers what gives it back. */
  readonly take: () => Promise<() => Promise<void> | void>;
  /** The agent cannot be asked over NATS meanwhile. */
  readonly deaf?: boolean;
}

const CASES: readonly Case[] = [
  {
    name: 'NATS is killed',
    condition: 'bus-away',
    reason: /refused/i,
    deaf: true,
    take: async () => {
      await nats.kill();
      return () => nats.restart();
    },
  },
  {
    name: 'NATS falls silent',
    condition: 'bus-away',
    reason: /answer|silent/i,
    deaf: true,
    take: async () => {
      nats.pause();
      return () => nats.resume();
    },
  },
  {
    name: 'packets to NATS are dropped',
    condition: 'bus-away',
    reason: /answer|silent|time/i,
    deaf: true,
    take: async () => {
      nft('add table inet loss; add chain inet loss in { type filter hook input priority 0; }');
      nft(`add rule inet loss in tcp dport ${nats.port} drop`);
      return () => nft('delete table inet loss');
    },
  },
  {
    name: 'the password is another',
    condition: 'credentials-refused',
    reason: /password|authori[sz]ation/i,
    deaf: true,
    take: async () => reconfigureNats({ password: 'another' }),
  },
  {
    name: 'a subject is not the agent’s to hear any more',
    condition: 'subscription-refused',
    reason: /volt\.net\.v1\.host\.h1\.attach/,
    take: async () => reconfigureNats({ deny: { subscribe: 'volt.net.v1.host.h1.attach' } }),
  },
  {
    name: 'JetStream is off',
    condition: 'jetstream-away',
    reason: /JetStream/,
    take: async () => {
      await startOtherNats({ jetStream: false });
      return () => startOtherNats({});
    },
  },
  {
    name: 'the job stream would run finished jobs again',
    condition: 'stream-unfit',
    reason: /VOLT_NET_JOBS.*retention/,
    take: async () => {
      await agent.kill();
      await manager.streams.delete('VOLT_NET_JOBS');
      await manager.streams.add({ name: 'VOLT_NET_JOBS', subjects: ['volt.net.v1.job.*.*'] });
      await agent.restart();
      return async () => void (await manager.streams.delete('VOLT_NET_JOBS'));
    },
  },
  {
    name: 'the event stream is full and takes nothing',
    condition: 'events-waiting',
    reason: /maximum messages exceeded/,
    take: async () => {
      const { config } = await manager.streams.info('VOLT_NET_EVENTS');
      const full = { ...config, discard: 'new', max_msgs: 1 } as typeof config;
      await manager.streams.purge('VOLT_NET_EVENTS');
      await connection.jetstream().publish('volt.net.v1.event.h0.-.suspect', '');
      await manager.streams.update('VOLT_NET_EVENTS', full);
      await client.attach('h1', { id: 'late', workload: 'vm-late', kind: 'vm', network: 'volt0' });
      return async () => void (await manager.streams.update('VOLT_NET_EVENTS', config));
    },
  },
  {
    name: 'an event is larger than the stream takes',
    condition: 'events-set-aside',
    reason: /^1 event/,
    take: async () => {
      const { config } = await manager.streams.info('VOLT_NET_EVENTS');
      await manager.streams.update('VOLT_NET_EVENTS', { ...config, max_msg_size: 256 });
      await client.attach('h1', {
        id: 'large',
        workload: 'vm-large',
        kind: 'vm',
        network: 'volt0',
      });
      return async () => {
        await manager.streams.update('VOLT_NET_EVENTS', config);
        await nats.kill();
        await nats.restart();
      };
    },
  },
  {
    name: 'Redis is killed',
    condition: 'ledger-away',
    reason: /ECONNREFUSED|refused/,
    take: async () => {
      await redis.kill();
      return () => redis.restart();
    },
  },
  {
    name: 'Redis falls silent',
    condition: 'ledger-away',
    reason: /no answer|time/i,
    take: async () => {
      redis.pause();
      return () => redis.resume();
    },
  },
  {
    name: 'Redis wants a password',
    condition: 'ledger-away',
    reason: /password/i,
    take: async () => {
      await redisCommand('CONFIG', 'SET', 'requirepass', 'secret');
      await redisCommand('CLIENT', 'KILL', 'TYPE', 'normal').catch(() => {});
      const admin = new Redis(redis.url, { password: 'secret' });
      await admin.call('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
      return async () => {
        await admin.call('CONFIG', 'SET', 'requirepass', '');
        admin.disconnect();
      };
    },
  },
  {
    name: 'Redis may evict',
    condition: 'ledger-unfit',
    reason: /maxmemory-policy/,
    take: async () => {
      await redisCommand('CONFIG', 'SET', 'maxmemory-policy', 'allkeys-lru');
      return async () =>
        void (await redisCommand('CONFIG', 'SET', 'maxmemory-policy', 'noeviction'));
    },
  },
  {
    name: 'Redis is emptied, and a host is down',
    condition: 'recovering',
    reason: /waits for .*h2/,
    take: async () => {
      const config = { host: 'h2', nats: { url: nats.url }, redis: { url: redis.url } };
      const other = await startAgent({
        config: {
          ...config,
          nats: { ...config.nats, url: nats.url.replace('//', '//test:test@') },
        },
      });
      await other.ready();
      await other.kill();
      await redisCommand('FLUSHALL');
      return async () => {
        await client.forgetHost('h2');
        await other.stop();
      };
    },
  },
  {
    name: 'the ledger knows the host as another machine',
    condition: 'session-refused',
    reason: /machine/,
    take: async () => {
      const record = 'volt:{ledger}:host:h1';
      const machineId = await redisCommand('HGET', record, 'machineId');
      await redisCommand('HSET', record, 'machineId', '0123456789abcdef0123456789abcdef');
      return async () => void (await redisCommand('HSET', record, 'machineId', String(machineId)));
    },
  },
  {
    name: 'the state folder becomes read-only',
    condition: 'disk-refuses',
    reason: /read-only/,
    take: async () => {
      const { stateDir } = agent;
      mount('--bind', stateDir, stateDir);
      mount('-o', 'remount,bind,ro', stateDir);
      return () => void execFileSync(requireTool('umount'), ['--lazy', stateDir]);
    },
  },
  {
    name: 'nftables cannot be used',
    condition: 'firewall-unusable',
    reason: /nftables/,
    take: async () => {
      const [library = ''] = globSync('/usr/lib/*/libnftables.so.1');
      mount('--bind', '/dev/null', library);
      await agent.restart();
      return () => void execFileSync(requireTool('umount'), [library]);
    },
  },
  {
    name: 'a device of somebody else has taken a name',
    condition: 'reconcile-differs',
    reason: /^web: /,
    take: async () => {
      await client.attach('h1', { id: 'web', workload: 'vm-web', kind: 'vm', network: 'volt0' });
      // The agent makes the device again: who comes first has the name.
      const input = 'link delete tap-web\nlink add tap-web type bridge\n';
      await until('the name is taken', () => {
        execFileSync(requireTool('ip'), ['-batch', '-'], { input, stdio: 'pipe' });
        return true;
      });
      return async () => {
        ip('link', 'delete', 'tap-web');
        await client.detach('h1', { id: 'web' });
      };
    },
  },
];

test.each(CASES)(
  '$name: $condition',
  async ({ condition, reason, take, deaf = false }) => {
    const began = (): number =>
      logged().filter((line) => line.condition === condition && line.reason !== undefined).length;
    const ended = (): number =>
      logged().filter((line) => line.msg === `${condition} is over`).length;
    const before = { began: began(), ended: ended() };
    const giveBack = await take();
    let given = false;
    try {
      await until(`${condition} is told`, async () =>
        (await conditions()).some((one) => one.name === condition && reason.test(one.reason)),
      );
      if (!deaf) {
        await until('the metadata has it, too', async () =>
          (await announced()).some((one) => one.name === condition && reason.test(one.reason)),
        );
      }
      await until('the log has it', () => began() > before.began);
      given = true;
      await giveBack();
      await until(
        'nothing is wrong any more',
        async () => (await conditions()).length === 0,
        60_000,
      );
      await until('the log has its end', () => ended() > before.ended);
      await until('nor says the metadata', async () => (await announced()).length === 0);
    } finally {
      if (!given) await giveBack();
    }
  },
  120_000,
);
