import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { globSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { attachmentSchema } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { startStack, type Stack } from '../../support/stack.ts';

// The command line as installed, against a real agent.

const VOLTNET = fileURLToPath(new URL('../../../deploy/bin/voltnet', import.meta.url));

let stack: Stack;
const folder = mkdtempSync(join(tmpdir(), 'volt-test-voltnet-'));
beforeAll(async () => {
  stack = await startStack();
});
afterAll(async () => {
  rmSync(folder, { recursive: true });
  await stack[Symbol.asyncDispose]();
});

interface Ended {
  readonly exitCode: number | null;
  readonly stdout: string;
  readonly stderr: string;
  readonly pid: number | undefined;
}

function start(
  words: readonly string[],
  env: Record<string, string> = {},
  { detached = false } = {},
): ChildProcess {
  return spawn(VOLTNET, words, {
    detached,
    env: {
      ...process.env,
      VOLT_NET_NATS_URL: stack.nats.url,
      VOLT_NET_HOST: stack.host,
      VOLT_NET_RUNTIME_DIR: dirname(stack.agent.socketPath),
      ...env,
    },
  });
}

async function ended(child: ChildProcess, input = ''): Promise<Ended> {
  let stdout = '';
  let stderr = '';
  child.stdout?.on('data', (chunk: Buffer) => (stdout += chunk.toString('utf8')));
  child.stderr?.on('data', (chunk: Buffer) => (stderr += chunk.toString('utf8')));
  child.stdin?.end(input);
  await once(child, 'close');
  return { exitCode: child.exitCode, stdout, stderr, pid: child.pid };
}

const voltnet = (...words: string[]): Promise<Ended> => ended(start(words));

/** The answer of a command that has to succeed. */
async function json(...words: string[]): Promise<Record<string, unknown>> {
  const { exitCode, stdout, stderr } = await voltnet(...words, '--json');
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
  return z.record(z.string(), z.unknown()).parse(JSON.parse(stdout));
}

const vm = (id: string, ...more: string[]): string[] => [
  ...`attach --id ${id} --workload vm-${id} --kind vm --network volt0`.split(' '),
  ...more,
];

const gone = async (id: string): Promise<void> => {
  expect((await voltnet('detach', id)).exitCode).toBe(0);
  await stack.gone(id);
};

describe('networks', () => {
  test('are put, shown, listed and deleted, and refused with the exit code of the reason', async () => {
    const lab = '{"network":"lab","subnet":"10.77.0.0/24"}';
    const put = await ended(start(['network', 'put', '-']), lab);
    expect(put).toMatchObject({ exitCode: 0, stdout: expect.stringContaining('lab created') });
    expect((await ended(start(['network', 'put', '-']), lab)).stdout).toContain(
      'lab is at revision',
    );
    const other = lab.replace('10.77', '10.78');
    expect(await ended(start(['network', 'put', '-', '--json']), other)).toMatchObject({
      exitCode: 5,
      stdout: '',
      stderr: expect.stringContaining('"NETWORK_CONFLICT"'),
    });
    expect(await json('network', 'get', 'lab')).toMatchObject({
      network: { subnet: '10.77.0.0/24' },
      usage: { used: 0 },
    });
    expect((await voltnet('network', 'list')).stdout).toMatch(/^lab +bridged +10\.77\.0\.0\/24/m);
    expect((await voltnet('network', 'delete', 'lab')).stdout).toBe('lab deleted\n');
    expect((await voltnet('network', 'get', 'lab')).exitCode).toBe(4);
    const wrong = await ended(
      start(['network', 'put', '-']),
      '{"network":"x","subnet":"10.0.0.1/24"}',
    );
    expect(wrong.exitCode).toBe(2);
    expect(wrong.stderr).toContain('10.0.0.0/24');
  });
});

describe('attachments', () => {
  test('attach --dry-run says what would be done', async () => {
    const said = await voltnet(...vm('dry', '--address', '10.42.0.51', '--dry-run'));
    expect(said.exitCode).toBe(0);
    expect(said.stdout).toMatch(/^address +10\.42\.0\.51\/24$/m);
    expect(said.stdout).toMatch(/^TUNSETPERSIST +tap-dry$/m);
    const operations: unknown = expect.arrayContaining([
      { operation: 'TUNSETIFF', subject: 'tap-dry' },
    ]);
    expect(await json(...vm('dry', '--dry-run'))).toMatchObject({ dryRun: true, operations });
    expect((await voltnet('get', 'dry')).exitCode).toBe(4);
    const outside = await voltnet(...vm('dry', '--address', '10.9.9.9', '--dry-run'));
    expect(outside).toMatchObject({ exitCode: 1, stderr: expect.stringContaining('10.9.9.9') });
    await voltnet(...vm('dry'));
    const attached = await voltnet(...vm('dry', '--dry-run'));
    expect(attached.stdout).toMatch(/^attached already/);
    await voltnet('detach', 'dry');
    await gone('dry');
  });

  test('attach, repeat, get, check, detach', async () => {
    const first = await json(...vm('web', '--label', 'team=a', '--address', '10.42.0.50'));
    expect(first).toMatchObject({
      replayed: false,
      attachment: { id: 'web', addresses: [{ address: '10.42.0.50/24' }], labels: { team: 'a' } },
    });
    expect(await json(...vm('web', '--address', '10.42.0.50'))).toMatchObject({ replayed: true });
    expect((await voltnet(...vm('web', '--mtu', '1400'))).exitCode).toBe(5);
    expect((await voltnet('get', 'web')).stdout).toMatch(
      /^address +10\.42\.0\.50\/24 via 10\.42\.0\.1$/m,
    );
    expect((await voltnet('get', 'nobody')).exitCode).toBe(4);
    expect(await voltnet('check', 'web')).toMatchObject({ exitCode: 0, stdout: 'in sync\n' });
    // What the kernel tells of is repaired before anybody can look; a lease is nobody's to make up.
    const redis = new Redis(stack.redis.url);
    const [key = ''] = await redis.keys('*:leases');
    const lease = await redis.hget(key, 'web');
    await redis.hdel(key, 'web');
    expect(await voltnet('check', 'web')).toMatchObject({
      exitCode: 8,
      stdout: expect.stringMatching(/^web +lease .* absent$/m),
    });
    await redis.hset(key, 'web', lease ?? '');
    redis.disconnect();
    expect((await voltnet('detach', 'web', '--generation', '1')).exitCode).toBe(5);
    await gone('web');
    expect((await voltnet('detach', 'web')).stdout).toBe('web was not attached\n');
  });

  test('list pages, filters, and without a page size shows all', async () => {
    const ids = ['page-1', 'page-2', 'page-3', 'page-4', 'page-5'];
    for (const id of ids) expect((await voltnet(...vm(id))).exitCode).toBe(0);
    const seen: string[] = [];
    let cursor: unknown;
    do {
      const more = typeof cursor === 'string' ? ['--cursor', cursor] : [];
      const page = await json('list', '--limit', '2', ...more);
      const attachments = z.array(attachmentSchema).parse(page['attachments']);
      expect(attachments.length).toBeLessThanOrEqual(2);
      seen.push(...attachments.map(({ id }) => id));
      ({ cursor } = page);
    } while (cursor !== undefined);
    expect(seen).toEqual(ids);
    const table = (await voltnet('list', '--kind', 'vm')).stdout.trimEnd().split('\n');
    expect(table).toHaveLength(1 + ids.length);
    expect(table[0]).toMatch(/^ID +KIND +NETWORK/);
    expect(
      (await voltnet('list', '--kind', 'container')).stdout.trimEnd().split('\n'),
    ).toHaveLength(1);
    expect((await voltnet('list', '--kind', 'cat')).exitCode).toBe(2);
    await Promise.all(ids.map(gone));
  });
});

describe('exec', () => {
  test('becomes the command, with the descriptor of the TAP open and what Node changed undone', async () => {
    const attachment = attachmentSchema.parse((await json(...vm('run')))['attachment']);
    const script =
      'echo $$; grep iff /proc/$$/fdinfo/{fd}; grep -h flags /proc/$$/fdinfo/1; ' +
      // Read by the shell itself: a child may see the moment in which a fork blocks its parent's signals.
      'while read -r key value; do case $key in SigBlk:|SigIgn:) echo "$key $value";; esac; done ' +
      '< /proc/$$/status; echo {mac} {mtu} {ifname}; cat; exit 42';
    const child = start(['exec', 'run', '--', 'sh', '-c', script]);
    const { exitCode, stdout, pid } = await ended(child, 'from standard input');
    expect(exitCode).toBe(42);
    expect(stdout.split('\n')).toEqual([
      String(pid),
      'iff:\ttap-run',
      'flags:\t02', // a socket of Node's, for reading and writing, and no O_NONBLOCK
      'SigBlk: 0000000000000000',
      'SigIgn: 0000000000000000',
      `${attachment.mac} 1500 tap-run`,
      'from standard input',
    ]);
    await gone('run');
  });

  test('hands over every queue, and refuses a second holder until the first has gone', async () => {
    expect((await voltnet(...vm('two', '--queues', '2'))).exitCode).toBe(0);
    const holder = start(['exec', 'two', '--', 'sh', '-c', 'echo {fds}; exec sleep 60']);
    const [line] = await once(holder.stdout ?? holder, 'data');
    const fds = String(line).trim().split(':');
    expect(fds).toHaveLength(2);
    const held = execFileSync('grep', [
      '-h',
      'iff',
      ...fds.map((fd) => `/proc/${holder.pid}/fdinfo/${fd}`),
    ]);
    expect(held.toString('utf8')).toBe('iff:\ttap-two\niff:\ttap-two\n');
    expect((await voltnet('exec', 'two', '--', 'true')).exitCode).toBe(6);
    holder.kill('SIGTERM');
    await once(holder, 'close');
    expect(holder.signalCode).toBe('SIGTERM');
    expect((await voltnet('exec', 'two', '--', 'true')).exitCode).toBe(0);
    expect((await voltnet('exec', 'two', '--', 'echo', '{fd}')).exitCode).toBe(2);
    await gone('two');
  });

  test.each([
    ['a command that is not there', ['exec', 'codes', '--', 'nonesuch'], 127],
    ['a command that is no program', ['exec', 'codes', '--', '/etc/passwd'], 126],
    ['another generation', ['exec', 'codes', '--generation', '1', '--', 'true'], 5],
    ['an attachment that is not there', ['exec', 'nobody', '--', 'true'], 4],
    ['no command', ['exec', 'codes'], 2],
  ])('%s has an exit code of its own', async (_claim, words, exitCode) => {
    await voltnet(...vm('codes'));
    expect((await voltnet(...words)).exitCode).toBe(exitCode);
    await gone('codes');
  });
});

describe('watch and status', () => {
  test('watch shows what happens after it said that it watches, as JSON for scripts', async () => {
    const text = start(['watch', '--type', 'attached', '--count', '1']);
    const lines = ended(text);
    await once(text.stderr ?? text, 'data');
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
    await ended(start(vm('seen'), { TRACEPARENT: traceparent }));
    expect(await lines).toMatchObject({
      exitCode: 0,
      stdout: expect.stringMatching(/attached .* volt0 +seen tap-seen 10\.42\.0\.\d+\/24 /),
    });
    await gone('seen');
  });

  test('the trace of TRACEPARENT goes on in the events', async () => {
    const watch = start(['watch', '--json', '--count', '1', '--type', 'attached']);
    const lines = ended(watch);
    const trace = '0af7651916cd43dd8448eb211c80319c';
    // Nothing says when a watch with --json has begun: attach until it has seen one.
    for (let tries = 0; watch.exitCode === null && tries < 20; tries += 1) {
      const env = { TRACEPARENT: `00-${trace}-b7ad6b7169203331-01` };
      await ended(start(vm(`traced-${tries}`), env));
      await gone(`traced-${tries}`);
    }
    const event: unknown = JSON.parse((await lines).stdout);
    expect(event).toMatchObject({
      type: 'attached',
      host: stack.host,
      network: 'volt0',
      traceparent: expect.stringContaining(trace),
      body: { state: 'attached' },
    });
  });

  test('status answers over the local socket', async () => {
    expect(await json('status')).toMatchObject({ health: { nats: 'connected' } });
    expect(await json('status', '--host', 'h1')).toMatchObject({ health: { host: 'h1' } });
    const { exitCode, stdout } = await voltnet('status');
    expect(exitCode).toBe(0);
    expect(stdout).toMatch(/^session +armed$/m);
  });

  test.each([
    'status',
    'doctor',
    'exec web -- true',
    'host settle',
    'host clean',
    'host clean --all',
  ])('%s is about this host, and refuses another', async (command) => {
    const { exitCode, stdout, stderr } = await voltnet('--host', 'h9', ...command.split(' '));
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: '' });
    expect(stderr).toMatch(/^voltnet: --host h9: this command is about the host that it runs on/);
  });

  test('what cannot be reached is exit code 3', async () => {
    const nats = { VOLT_NET_NATS_URL: 'nats://127.0.0.1:1' };
    expect((await ended(start(['network', 'list'], nats))).exitCode).toBe(3);
    expect((await ended(start(['list', '--host', 'elsewhere']))).exitCode).toBe(3);
    const nowhere = { VOLT_NET_RUNTIME_DIR: '/nonexistent' };
    expect((await ended(start(['status'], nowhere))).exitCode).toBe(3);
    expect((await ended(start(['list'], { ...nats, ...nowhere }))).exitCode).toBe(3);
    expect((await ended(start(['--local', 'list'], nowhere))).exitCode).toBe(3);
  });
});

describe('a network, changed by hand', () => {
  const edited = (script: string, ...words: string[]): Promise<Ended> =>
    ended(start(words, { EDITOR: `sed -i ${script}` }));

  test('edit puts what was saved, and nothing where nothing was changed', async () => {
    await json('network', 'put', networkFile({ network: 'edit0', subnet: '10.91.0.0/24' }));
    const same = await edited("''", 'network', 'edit', 'edit0');
    expect(same).toMatchObject({ exitCode: 0, stdout: 'edit0 is as it was\n' });
    const script = `'s/"reuseDelaySeconds": 60/"reuseDelaySeconds": 5/'`;
    const changed = await edited(script, 'network', 'edit', 'edit0', '--json');
    expect(changed.exitCode).toBe(0);
    expect(await json('network', 'get', 'edit0')).toMatchObject({
      network: { reuseDelaySeconds: 5 },
    });
  });

  test('edit keeps the text that was refused', async () => {
    const { exitCode, stderr } = await edited(
      `'s/10.91.0.0/10.91.0.1/'`,
      'network',
      'edit',
      'edit0',
    );
    expect(exitCode).toBe(2);
    expect(stderr).toContain('host bits');
    const [, file = ''] = /your text is in (\S+)/.exec(stderr) ?? [];
    expect(readFileSync(file, 'utf8')).toContain('10.91.0.1');
    rmSync(dirname(file), { recursive: true });
  });

  test('edit names the file with --json, too', async () => {
    const script = `'s/"reuseDelaySeconds": 5/"reuseDelaySeconds": -5/'`;
    const { exitCode, stderr } = await edited(script, 'network', 'edit', 'edit0', '--json');
    expect(exitCode).toBe(2);
    const [kept, error] = stderr.trimEnd().split('\n');
    const { file } = JSON.parse(kept ?? '') as { file: string };
    expect(readFileSync(file, 'utf8')).toContain('-5');
    expect(JSON.parse(error ?? '')).toMatchObject({ error: { code: 'INVALID_REQUEST' } });
    rmSync(dirname(file), { recursive: true });
  });

  test('an editor that removes the file changes nothing', async () => {
    const editing = start(['network', 'edit', 'edit0'], { EDITOR: 'rm' });
    const { exitCode, stderr } = await ended(editing);
    expect({ exitCode, stderr }).toEqual({
      exitCode: 2,
      stderr: 'voltnet: the file is gone, and nothing was changed\n',
    });
  });

  test('an editor that fails changes nothing', async () => {
    const { exitCode, stderr } = await ended(
      start(['network', 'edit', 'edit0'], { EDITOR: 'false' }),
    );
    expect(exitCode).toBe(2);
    expect(stderr).toContain('false ended with 1');
  });

  test('diff names each key, and what is the same is exit code 0', async () => {
    const file = networkFile({ network: 'edit0', subnet: '10.91.0.0/24', mtu: 1400 });
    const { exitCode, stdout } = await voltnet('network', 'diff', file, '--json');
    expect(exitCode).toBe(8);
    expect(JSON.parse(stdout)).toMatchObject({
      differences: [
        { path: 'reuseDelaySeconds', now: '5', file: '60' },
        { path: 'mtu', now: null, file: '1400' },
      ],
    });
    const same = networkFile({ network: 'edit0', subnet: '10.91.0.0/24', reuseDelaySeconds: 5 });
    expect(await voltnet('network', 'diff', same)).toMatchObject({ exitCode: 0 });
    const other = networkFile({ network: 'other0', subnet: '10.92.0.0/24' });
    expect(await voltnet('network', 'diff', other)).toMatchObject({
      exitCode: 8,
      stdout: 'other0: there is no such network yet\n',
    });
  });

  test('Ctrl-C is for the editor', async () => {
    const script = join(mkdtempSync(join(tmpdir(), 'volt-test-editor-')), 'editor');
    writeFileSync(
      script,
      `trap '' INT
      touch "$1.open"
      until [ -e "$1.interrupted" ]; do sleep 0.1; done
      sed -i 's/"reuseDelaySeconds": 5/"reuseDelaySeconds": 6/' "$1"`,
    );
    const editing = dirname(script);
    // In a group of its own, as a shell starts what has its terminal.
    const env = { EDITOR: `exec sh ${script}`, TMPDIR: editing };
    const child = start(['network', 'edit', 'edit0'], env, { detached: true });
    const opened = (): string | undefined =>
      globSync(join(editing, 'voltnet-*/edit0.json.open'))[0];
    await until('the editor runs', () => opened() !== undefined);
    process.kill(-(child.pid ?? 0), 'SIGINT');
    writeFileSync((opened() ?? '').replace(/open$/, 'interrupted'), '');
    expect(await once(child, 'exit')).toEqual([0, null]);
    expect(await json('network', 'get', 'edit0')).toMatchObject({
      network: { reuseDelaySeconds: 6 },
    });
    rmSync(editing, { recursive: true });
  });
});

test('an address may be given as answers have it', async () => {
  const { attachment } = await json(...vm('as-shown', '--address', '10.42.0.77/24'));
  expect(attachment).toMatchObject({ addresses: [{ address: '10.42.0.77/24' }] });
  await json('detach', 'as-shown');
});

test('watch shows what was before, since a time', async () => {
  await json(...vm('seen'));
  await json('detach', 'seen');
  const { exitCode, stdout } = await voltnet(
    ...['watch', '--since', '1h', '--type', 'attached', '--count', '1', '--json'],
  );
  expect(exitCode).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ type: 'attached' });
  expect(await voltnet('watch', '--since', 'yesterday')).toMatchObject({ exitCode: 2 });
});

test('drain cordons a host, detaches all of it, and says how many', async () => {
  await json(...vm('drain-a'));
  await json(...vm('drain-b'));
  const { attachments } = await json('list');
  expect(await json('host', 'drain', stack.host, '--reason', 'new kernel')).toEqual({
    host: stack.host,
    cordoned: true,
    detached: z.array(z.unknown()).parse(attachments).length,
  });
  expect(await json('list')).toEqual({ attachments: [] });
  // By another host's command line, then by the machine's own where there is no NATS.
  expect(await voltnet(...vm('late'))).toMatchObject({
    exitCode: 5,
    stderr: expect.stringContaining('new kernel'),
  });
  expect(await json('host', 'drain', stack.host, '--local')).toMatchObject({ detached: 0 });
  const { exitCode, stdout } = await voltnet('status');
  expect({ exitCode, stdout }).toMatchObject({
    exitCode: 8,
    stdout: expect.stringContaining('host-cordoned'),
  });
  expect(await json('host', 'uncordon', stack.host, '--local')).toEqual({
    host: stack.host,
    cordoned: false,
  });
  await json(...vm('late'));
  await gone('late');
  expect(await voltnet('host', 'cordon', 'h9')).toMatchObject({ exitCode: 3 });
  expect(await voltnet('host', 'cordon', 'h9', '--local')).toMatchObject({ exitCode: 5 });
  expect(await voltnet('host', 'cordon', stack.host, '--reason', '')).toMatchObject({
    exitCode: 2,
  });
});

test('version, completion', async () => {
  const version = expect.stringMatching(/^\d+\.\d+\.\d+\n$/);
  expect(await voltnet('-v')).toMatchObject({ exitCode: 0, stdout: version });
  expect(await voltnet('version')).toMatchObject({ exitCode: 0, stdout: version });
  const { stdout } = await voltnet('completion', 'bash');
  expect(execFileSync('bash', ['-n'], { input: stdout, encoding: 'utf8' })).toBe('');
  expect(stdout).toContain('network put');
  expect(await voltnet('completion', 'csh')).toMatchObject({ exitCode: 2 });
});

describe('trace', () => {
  const span = (spanId: string, more: object) => ({
    traceId: '4bf92f3577b34da6a3ce929d0e0e4736',
    spanId,
    name: spanId,
    startTimeUnixNano: '1000000000',
    endTimeUnixNano: '1002000000',
    ...more,
  });
  const line = (...spans: object[]): string =>
    `${JSON.stringify({ resourceSpans: [{ scopeSpans: [{ spans }] }] })}\n`;
  const named = { attributes: [{ key: 'volt.attachment.id', value: { stringValue: 'web' } }] };
  const spans = [
    line(span('attach', named), span('kernel', { parentSpanId: 'attach' })),
    'no JSON\n{"resourceMetrics":[]}\n',
    line(span('other', { traceId: 'f'.repeat(32) })),
  ].join('');

  test('is found by attachment id and by trace id', async () => {
    const file = join(folder, 'traces.jsonl');
    writeFileSync(file, spans);
    for (const id of ['web', '4bf92f3577b34da6a3ce929d0e0e4736']) {
      const { exitCode, stdout } = await voltnet('trace', id, '--file', file);
      expect(exitCode).toBe(0);
      expect(stdout).toMatch(/^trace 4bf9.*\nattach +━+ +2\.000 ms\n {2}kernel +━+ +2\.000 ms\n$/);
    }
    const { stdout } = await ended(start(['trace', 'web', '--file', '-', '--json']), spans);
    expect(JSON.parse(stdout)).toMatchObject({
      traces: [{ spans: [{ name: 'attach', start: '1000000000' }, { name: 'kernel' }] }],
    });
  });

  test('what is not there is said', async () => {
    const file = join(folder, 'traces.jsonl');
    expect(await voltnet('trace', 'nobody', '--file', file)).toMatchObject({ exitCode: 4 });
    expect(await voltnet('trace', 'web', '--file', '/nowhere')).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining('no such file'),
    });
  });
});

function networkFile(network: object): string {
  const file = join(folder, 'network.json');
  writeFileSync(file, JSON.stringify(network));
  return file;
}
