import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { Ajv } from 'ajv';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { LOCAL_OPS, localAnswerSchemas, localPacketSchema } from '#protocol/local-socket.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { MAX_PACKET_BYTES, sendPacket } from '#native/packet.ts';
import { firstPacket, requestSeqpacket } from '#native/unix.ts';
import { connectTo, openSocket, SOCK_NONBLOCK, SOCK_SEQPACKET } from '#native/unix-socket.ts';
import { until } from '../../support/agent.ts';
import { claimFrom } from '../../support/claim.ts';
import { addNamespace, deviceNames } from '../../support/kernel.ts';
import { startStack, type Stack } from '../../support/stack.ts';
import { type Ended, runVoltnet } from '../../support/voltnet.ts';

// One host whose NATS, and then its Redis, goes: what root can still do there.

const STRANGER = 65_534;
/** So many attachments with so much in their labels are more than one answer holds. */
const MANY = 300;
const LABELS = Object.fromEntries(
  Array.from({ length: 10 }, (_, n) => [`label-${n}`, `"${'ä'.repeat(120)}\n`]),
);

/** Room for all of them. */
const WIDE = { network: 'volt0', subnet: '10.42.0.0/22', gateway: '10.42.0.1' };

let stack: Stack;
beforeAll(async () => {
  stack = await startStack({
    networks: [WIDE],
  });
});
afterAll(() => stack[Symbol.asyncDispose]());

const voltnet = (words: string, uid?: number): Promise<Ended> =>
  runVoltnet(['--timeout', '5s', ...words.split(' ')], {
    env: {
      VOLT_NET_NATS_URL: stack.nats.url,
      VOLT_NET_RUNTIME_DIR: stack.agent.runtimeDir,
    },
    ...(uid !== undefined && { uid }),
  });

const vm = (id: string) => ({ id, workload: `vm-${id}`, kind: 'vm', network: 'volt0' }) as const;
const attach = (id: string): string =>
  `attach --id ${id} --workload vm-${id} --kind vm --network volt0`;

/** What the local socket answers root. */
async function ask(packet: object | string): Promise<Record<string, unknown>> {
  const payload = Buffer.from(typeof packet === 'string' ? packet : JSON.stringify(packet));
  const { bytes } = await requestSeqpacket(stack.agent.socketPath, payload);
  return JSON.parse(bytes.toString()) as Record<string, unknown>;
}

const request = (operation: string, body: object = {}, more: object = {}) =>
  ask({ op: 'request', operation, body, ...more });

const SCHEMAS = new URL('../../../docs/reference/schemas/', import.meta.url);

/** Whether a value is what a JSON Schema of the reference describes. */
const followsReference = (name: string, value: unknown): boolean =>
  new Ajv().validate(
    JSON.parse(readFileSync(new URL(`${name}.json`, SCHEMAS), 'utf8')) as object,
    value,
  );

/** A connection of some user. */
function connect(uid = 0): Descriptor {
  const socket = openSocket(SOCK_SEQPACKET | SOCK_NONBLOCK);
  process.seteuid?.(uid);
  try {
    connectTo(socket, stack.agent.socketPath);
  } finally {
    process.seteuid?.(0);
  }
  return socket;
}

describe('the local socket', () => {
  test('answers what the bus answers', async () => {
    const { client, host } = stack;
    const attached = await request('attach', vm('one'));
    expect(attached).toEqual({ ...(await client.attach(host, vm('one'))), replayed: false });
    expect(await request('get', { id: 'one' })).toEqual(await client.get(host, { id: 'one' }));
    expect(await request('check', { id: 'one' })).toEqual(await client.check(host, { id: 'one' }));
    const labels = { a: 'b' };
    expect(await request('update', { id: 'one', labels })).toMatchObject({
      attachment: { labels },
    });
    expect(await request('attach', { ...vm('dry'), dryRun: true })).toMatchObject({ dryRun: true });
    expect(await request('detach', { id: 'one' }, { host })).toEqual({
      detached: true,
      releasing: true,
    });
    await stack.gone('one');
  });

  test('packets and answers have the keys that the reference tells of, and no others', async () => {
    const { host, client, agent } = stack;
    await client.attach(host, vm('told'));
    const { generation } = (await client.get(host, { id: 'told' })).attachment;
    const claim = { op: 'claim', id: 'told', generation } as const;
    const claimed = await claimFrom(agent, claim);
    claimed.close();
    const answered: Record<keyof typeof localAnswerSchemas, unknown> = {
      claim: claimed.body,
      clean: await ask({ op: 'clean' }),
      health: await ask({ op: 'health' }),
      settle: await ask({ op: 'settle' }),
    };
    const listed = { op: 'request', operation: 'list', body: { limit: 1 }, timeoutMs: 5_000 };
    expect(await ask(listed)).toHaveProperty('attachments');
    for (const packet of [claim, listed, ...LOCAL_OPS.map((op) => ({ op }))]) {
      // All that are complete: `{"op":"claim"}` is not.
      const isWhole = localPacketSchema.safeParse(packet).success;
      expect(followsReference(`local-${packet.op}-packet`, packet), JSON.stringify(packet)).toBe(
        isWhole,
      );
    }
    for (const [op, schema] of Object.entries(localAnswerSchemas)) {
      const answer = answered[op as keyof typeof localAnswerSchemas];
      // The schema leaves out what it does not know.
      expect(schema.parse(answer), op).toEqual(answer);
      expect(followsReference(`local-${op}-answer`, answer), op).toBe(true);
    }
    await client.detach(host, { id: 'told' });
    await stack.gone('told');
  });

  const refused: [name: string, packet: object | string, code: string, said: RegExp][] = [
    ['what is no packet', '[]', 'INVALID_REQUEST', /"claim", "clean", "health"/],
    ['what is not JSON', '{', 'INVALID_REQUEST', /not JSON/],
    ['another op', '{"op":"listen"}', 'INVALID_REQUEST', /op: .*"claim", "clean", "health"/],
    ['a claim of nothing', '{"op":"claim"}', 'INVALID_REQUEST', /id: must be a string/],
    [
      'a generation that is none',
      '{"op":"claim","id":"x","generation":"1"}',
      'INVALID_REQUEST',
      /generation: must be an integer/,
    ],
    ['an unknown operation', { operation: 'reboot' }, 'INVALID_REQUEST', /one of attach, detach/],
    ['an operation of the fleet', { operation: 'ledger-forget' }, 'INVALID_REQUEST', /operation/],
    ['none', {}, 'INVALID_REQUEST', /operation: must be a string/],
    ['an unknown key', { operation: 'list', body: { x: 1 } }, 'INVALID_REQUEST', /x/],
    ['a body that is none', { operation: 'list', body: [1] }, 'INVALID_REQUEST', /./],
    ['a wrong time', { operation: 'list', timeoutMs: 'x' }, 'INVALID_REQUEST', /timeoutMs/],
    ['another host', { operation: 'list', host: 'h9' }, 'WRONG_HOST', /agent of host .*not of h9/],
    [
      'what is not there',
      { operation: 'get', body: { id: 'x' } },
      'NOT_FOUND',
      /x is not attached/,
    ],
    [
      'a prototype',
      '{"op":"request","operation":"list","body":{"__proto__":{}}}',
      'INVALID_REQUEST',
      /__proto__/,
    ],
    [
      'a body that is too deep',
      `{"op":"request","operation":"list","body":${'['.repeat(9_000)}${']'.repeat(9_000)}}`,
      'INVALID_REQUEST',
      /body/,
    ],
  ];
  test.each(refused)('refuses %s', async (_, packet, code, said) => {
    const asked = typeof packet === 'string' ? packet : { op: 'request', ...packet };
    const message: unknown = expect.stringMatching(said);
    expect(await ask(asked)).toMatchObject({ error: { code, message } });
  });

  test('refuses everybody but root', async () => {
    using socket = connect(STRANGER);
    for (const operation of ['list', 'detach', 'nonsense']) {
      sendPacket(socket.fd, Buffer.from(JSON.stringify({ op: 'request', operation })));
      const { bytes } = await firstPacket(socket.fd, 'agent.sock', 5_000);
      expect(JSON.parse(bytes.toString())).toMatchObject({ error: { code: 'UNAUTHORIZED' } });
    }
    // Its other packets are answered as before.
    sendPacket(socket.fd, Buffer.from('{"op":"health"}'));
    const { bytes } = await firstPacket(socket.fd, 'agent.sock', 5_000);
    expect(JSON.parse(bytes.toString())).toMatchObject({ health: { host: stack.host } });
  });

  test('gives an answer up that takes longer than its caller waits', async () => {
    stack.redis.pause();
    try {
      const answer = await request('attach', vm('late'), { timeoutMs: 300 });
      const code: unknown = expect.stringMatching(/^(DEADLINE_EXCEEDED|STORE_UNAVAILABLE)$/);
      expect(answer).toMatchObject({ error: { code, retryable: true } });
    } finally {
      stack.redis.resume();
    }
    await stack.agent.ready();
    await stack.client.detach(stack.host, { id: 'late' });
    await stack.gone('late');
  });
});

describe('answers of many packets', () => {
  const ids = Array.from({ length: MANY }, (_, n) => `many-${n}`);
  /** Some at a time, however busy the machine is. */
  const forAll = async (work: (id: string) => Promise<unknown>): Promise<void> => {
    for (let at = 0; at < ids.length; at += 50) {
      await Promise.all(ids.slice(at, at + 50).map(work));
    }
  };
  const patient = { timeoutMs: 60_000 };
  beforeAll(() =>
    forAll((id) => stack.client.attach(stack.host, { ...vm(id), labels: LABELS }, patient)),
  );
  afterAll(async () => {
    await forAll((id) => stack.client.detach(stack.host, { id }, patient));
    await forAll((id) => stack.gone(id));
  });

  test('are pages of the bus, whole', async () => {
    const page = await request('list');
    expect(JSON.stringify(page).length).toBeGreaterThan(4 * MAX_PACKET_BYTES);
    expect(page['cursor']).toBeDefined();
    expect(page).toEqual(await stack.client.list(stack.host));
    const { exitCode, stdout } = await voltnet('--local list --json');
    expect(exitCode).toBe(0);
    const { attachments } = JSON.parse(stdout) as { attachments: unknown[] };
    expect(attachments).toHaveLength(MANY);
  });

  test('a shell reads them with a few lines of Python', () => {
    const script = `
import json, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
s.send(json.dumps({"op": "request", "operation": "list"}).encode())
answer = b""
while True:
    packet = s.recv(65536)
    answer += packet
    if len(packet) < 65536:
        break
print(len(json.loads(answer)["attachments"]))`;
    const printed = execFileSync('python3', ['-c', script, stack.agent.socketPath]);
    expect(Number(printed)).toBeGreaterThan(100);
  });

  test('whose readers do not read are bounded, and given up', async () => {
    const asked = Buffer.from('{"op":"request","operation":"list"}');
    const sockets = Array.from({ length: 40 }, () => connect());
    try {
      for (const socket of sockets) sendPacket(socket.fd, asked);
      await until('further ones are refused', async () => {
        const { error } = (await request('list')) as { error?: { code: string } };
        return error?.code === 'OVERLOADED';
      });
      // Others are served meanwhile.
      expect(await ask({ op: 'health' })).toMatchObject({ health: { host: stack.host } });
      expect((await stack.client.list(stack.host)).attachments.length).toBeGreaterThan(0);
      await until('they are given up', async () => (await request('list'))['error'] === undefined);
    } finally {
      for (const socket of sockets) socket.close();
    }
  });
});

describe('without NATS', () => {
  beforeAll(async () => {
    const { client, host } = stack;
    addNamespace('inside');
    await client.attach(host, vm('web'));
    const container = { workload: 'container-db', kind: 'container', network: 'volt0' } as const;
    await client.attach(host, { id: 'db', ...container, netns: '/run/netns/inside' });
    await stack.nats.kill();
  });

  test('voltnet asks the agent of this host, and says so', async () => {
    const said: unknown = expect.stringMatching(
      /^cannot connect to NATS at nats:\S+: connection refused; asking the agent of this host/,
    );
    expect(await voltnet('list')).toMatchObject({
      exitCode: 0,
      stdout: expect.stringMatching(/^web .* tap-web /m),
      stderr: said,
    });
    expect(await voltnet('get web')).toMatchObject({ exitCode: 0, stderr: said });
    expect(await voltnet('check')).toMatchObject({ exitCode: 0, stdout: 'in sync\n' });
    expect(await voltnet(`${attach('new')} --dry-run`)).toMatchObject({ exitCode: 0 });
    expect(await voltnet(attach('new'))).toMatchObject({ exitCode: 0 });
    expect(deviceNames()).toContain('tap-new');
    expect(await voltnet('update new --label a=b')).toMatchObject({ exitCode: 0 });
    expect(await voltnet('list --all-hosts')).toMatchObject({
      exitCode: 0,
      stdout: expect.stringMatching(/^new /m),
    });
    expect(await voltnet('detach new')).toMatchObject({ exitCode: 0, stdout: 'new detached\n' });
    expect((await voltnet('get nobody')).exitCode).toBe(4);
  });

  test('as JSON, on a line of its own', async () => {
    const { exitCode, stdout, stderr } = await voltnet('--json list');
    expect(exitCode).toBe(0);
    expect(JSON.parse(stderr)).toMatchObject({
      way: 'local',
      error: { code: 'AGENT_UNAVAILABLE' },
    });
    expect(JSON.parse(stdout)).toMatchObject({ attachments: [{ id: 'db' }, { id: 'web' }] });
  });

  test('with --local it asks nobody else, and says nothing', async () => {
    expect(await voltnet('--local list')).toMatchObject({ exitCode: 0, stderr: '' });
    expect(await voltnet('--local network list')).toMatchObject({
      exitCode: 2,
      stderr: expect.stringMatching(/--local: this command needs NATS/),
    });
    expect((await voltnet('--local --host h9 list')).exitCode).toBe(5);
  });

  test('not for another host, not for another user, and not what the fleet answers', async () => {
    expect(await voltnet('--host h9 list')).toMatchObject({ exitCode: 3, stdout: '' });
    expect(await voltnet('list', STRANGER)).toMatchObject({ exitCode: 3, stdout: '' });
    expect(await voltnet('--local list', STRANGER)).toMatchObject({ exitCode: 7, stdout: '' });
    expect((await voltnet('network list')).exitCode).toBe(3);
  });
});

describe('without Redis as well', () => {
  beforeAll(async () => {
    await stack.redis.kill();
    await until('the agent knows', async () => {
      const { redis } = await stack.agent.health();
      return (redis as { state: string }).state !== 'ready';
    });
  });

  test('check compares records and kernel, and says what it could not', async () => {
    const said: unknown = expect.stringMatching(/not compared with the ledger: STORE_UNAVAILABLE/);
    for (const words of ['check', 'check web']) {
      expect(await voltnet(words)).toMatchObject({
        exitCode: 8,
        stdout: 'what could be compared agrees\n',
        stderr: said,
      });
    }
    expect(await request('check')).toMatchObject({
      inSync: false,
      differences: [],
      notCompared: [{ what: 'ledger', code: 'STORE_UNAVAILABLE' }],
    });
  });

  test('check finds what differs in the kernel', async () => {
    // What lies inside a container's namespace is told of and never repaired.
    execFileSync('ip', ['-n', 'inside', 'link', 'set', 'eth0', 'mtu', '1280']);
    const differs: unknown = expect.stringMatching(/^db +\S*mtu +1500 +1280$/m);
    expect(await voltnet('check db')).toMatchObject({ exitCode: 8, stdout: differs });
    expect(await voltnet('check')).toMatchObject({ exitCode: 8, stdout: differs });
    execFileSync('ip', ['-n', 'inside', 'link', 'set', 'eth0', 'mtu', '1500']);
  });

  test('list, get and detach work; attach is for later', async () => {
    expect((await voltnet('list')).stdout).toMatch(/^web /m);
    expect((await voltnet('get web')).exitCode).toBe(0);
    expect((await voltnet(attach('later'))).exitCode).toBe(6);
    expect(await voltnet('detach web')).toMatchObject({ exitCode: 0, stdout: 'web detached\n' });
    expect(deviceNames()).not.toContain('tap-web');
  });

  test('and all is as it was once both are back', async () => {
    await stack.redis.restart();
    await stack.nats.restart();
    await stack.agent.ready();
    await stack.gone('web');
    expect(await voltnet('check')).toEqual({ exitCode: 0, stdout: 'in sync\n', stderr: '' });
  });
});
