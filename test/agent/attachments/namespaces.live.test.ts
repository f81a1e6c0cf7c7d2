import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { addNamespace, removeNamespace } from '../../support/kernel.ts';
import { mountSilentFiles } from '../../support/silent-files.ts';
import { type Stack, startStack, VOLT0 } from '../../support/stack.ts';
import { dyingWithParent, requireTool } from '../../support/tools.ts';

// `netns` is a path of somebody else's choice, and the agent is root: whatever it leads to, nobody else waits, and
// nothing but a network namespace is opened.

const ISLAND = { network: 'island', type: 'isolated' };
const FOLDER = '/run/paths';

let stack: Stack;

beforeAll(async () => {
  stack = await startStack({ networks: [VOLT0, ISLAND], config: { reconcileSeconds: 1 } });
  mkdirSync(FOLDER);
  // The bridge and the ledger's usage are as after any first attach.
  await attach('first');
  await detach('first');
});
afterAll(() => stack[Symbol.asyncDispose]());

const request = (id: string, more: Partial<AttachRequest> = {}): AttachRequest => ({
  id,
  workload: `container-${id}`,
  kind: 'container',
  network: 'volt0',
  ...more,
});
const attach = (id: string, more: Partial<AttachRequest> = {}) =>
  stack.client.attach(stack.host, request(id, more), { timeoutMs: 10_000 });

async function detach(id: string): Promise<void> {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
}

const refusalOf = (asked: Promise<unknown>): Promise<unknown> =>
  asked.then(
    () => new Error('attached'),
    (error: unknown) => error,
  );

/** Processes that the agent has started. */
function childrenOfAgent(): number {
  const { pid } = stack.agent;
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
  return children === '' ? 0 : children.split(' ').length;
}

describe('a file system that does not answer', () => {
  test('holds up its own request alone, and that for two seconds', async () => {
    using silent = mountSilentFiles(`${FOLDER}/silent`);
    const asked = refusalOf(attach('waits', { netns: `${FOLDER}/silent/ns` }));
    await until('it is asked', () => silent.taken() > 0);
    const other = attach('other');
    expect(await Promise.race([asked, other])).toMatchObject({ replayed: false });
    expect(await asked).toMatchObject({
      code: 'DEADLINE_EXCEEDED',
      retryable: true,
      details: { path: 'netns' },
      message: expect.stringContaining('does not answer'),
    });
    await detach('other');
  });

  test('is no namespace itself, which is known without asking it', async () => {
    using silent = mountSilentFiles(`${FOLDER}/silent`);
    expect(await refusalOf(attach('root', { netns: `${FOLDER}/silent` }))).toMatchObject({
      code: 'NAMESPACE_NOT_FOUND',
    });
    expect(silent.taken()).toBe(0);
  });

  test('holds a few processes at most, however many paths lead there, and no path that does not', async () => {
    using silent = mountSilentFiles(`${FOLDER}/silent`);
    const refusals = await Promise.all(
      Array.from({ length: 12 }, (_, n) =>
        refusalOf(attach(`waits-${n}`, { netns: `${FOLDER}/silent/${n}` })),
      ),
    );
    expect(refusals.map((error) => (error as { code?: string }).code)).toEqual(
      Array.from({ length: 12 }, () => 'DEADLINE_EXCEEDED'),
    );
    expect(silent.taken()).toBeGreaterThan(0);
    expect(childrenOfAgent()).toBeLessThanOrEqual(4);
    addNamespace('plain');
    expect(await attach('plain', { netns: '/run/netns/plain' })).toMatchObject({ replayed: false });
    await detach('plain');
    removeNamespace('plain');
  });

  test('under the path of an attachment is no reason to end it, and keeps nobody from being looked after', async () => {
    addNamespace('kept');
    mkdirSync(`${FOLDER}/links`);
    symlinkSync('/run/netns/kept', `${FOLDER}/links/kept`);
    await attach('kept', { netns: `${FOLDER}/links/kept` });
    const inSync = async (): Promise<boolean> => (await stack.client.check(stack.host, {})).inSync;
    expect(await stack.client.check(stack.host, {})).toMatchObject({ differences: [] });
    {
      using silent = mountSilentFiles(`${FOLDER}/links`);
      await until('reconcile asks', () => silent.taken() > 0);
      expect((await stack.client.check(stack.host, {})).differences).toEqual([
        {
          id: 'kept',
          what: 'netns',
          expected: `${FOLDER}/links/kept`,
          observed: expect.stringContaining('does not answer'),
        },
      ]);
      const { attachment } = await attach('beside');
      execFileSync(requireTool('ip'), ['link', 'set', attachment.device?.name ?? '', 'down']);
      await until('another is mended', () => isUp(attachment.device?.name ?? ''));
      expect((await stack.client.get(stack.host, { id: 'kept' })).attachment.state).toBe(
        'attached',
      );
      await detach('beside');
    }
    await until('all is in sync again', inSync);
    await detach('kept');
    removeNamespace('kept');
  });
});

const isUp = (name: string): boolean =>
  (Number(readFileSync(`/sys/class/net/${name}/flags`, 'utf8')) & 1) === 1;

describe('what is no network namespace', () => {
  let writer: ChildProcess | undefined;
  afterEach(() => writer?.kill('SIGKILL'));

  test('is not opened: nobody who waits to write into a FIFO goes on', async () => {
    execFileSync('mkfifo', [`${FOLDER}/fifo`]);
    const [file, args] = dyingWithParent(['sh', '-c', `exec 3>${FOLDER}/fifo; echo opened`]);
    writer = spawn(file, args);
    let said = '';
    writer.stdout?.on('data', (chunk: Buffer) => (said += chunk.toString()));
    await until('it waits', () => waitsForReader(writer?.pid ?? 0));
    const refusal = await refusalOf(attach('fifo', { netns: `${FOLDER}/fifo` }));
    expect(refusal).toMatchObject({ code: 'NAMESPACE_NOT_FOUND' });
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(said).toBe('');
    expect(waitsForReader(writer.pid ?? 0)).toBe(true);
  });

  const reasons: [reason: string, path: string][] = [
    ['ENOENT', `${FOLDER}/none`],
    ['ENOENT', '/run/netns/none'],
    ['ENOENT', '/proc/999999999/ns/net'],
    ['ENOTDIR', `${FOLDER}/file/none`],
    ['ELOOP', `${FOLDER}/loop`],
    ['ELOOP', '/run/netns/loop'],
    ['ENAMETOOLONG', `${FOLDER}/${'n'.repeat(300)}`],
    ['ENAMETOOLONG', `/run/netns/${'n'.repeat(300)}`],
    ['is not a network namespace', `${FOLDER}/file`],
    ['is not a network namespace', FOLDER],
    ['is not a network namespace', '/dev/tty'],
    ['is not a network namespace', '/proc/self/ns/mnt'],
    ['is not a network namespace', '/proc/self/fd/0'],
  ];
  beforeAll(() => {
    writeFileSync(`${FOLDER}/file`, '');
    for (const path of [`${FOLDER}/loop`, '/run/netns/loop']) symlinkSync(path, path);
  });
  test.each(reasons)('is NAMESPACE_NOT_FOUND with the reason: %s', async (reason, netns) => {
    expect(await refusalOf(attach('none', { netns }))).toMatchObject({
      code: 'NAMESPACE_NOT_FOUND',
      message: expect.stringContaining(reason),
      details: { path: 'netns' },
    });
    // A dry run says the same.
    expect(await refusalOf(attach('none', { netns, dryRun: true }))).toMatchObject({
      code: 'NAMESPACE_NOT_FOUND',
    });
  });
});

/** The shell is there, asleep (state S, proc_pid_stat(5)), and has said nothing of an open that returned. */
const waitsForReader = (pid: number): boolean =>
  /^\d+ \(sh\) S /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));

describe('a namespace that was made for another attachment', () => {
  const ways: [way: string, path: (pid: number) => string][] = [
    ['its path', () => '/run/netns/volt-owner'],
    ['the other name of its folder', () => '/var/run/netns/volt-owner'],
    ['a link beside it', () => '/run/netns/link'],
    ['a link elsewhere', () => `${FOLDER}/owner`],
    ['a bind mount', () => `${FOLDER}/bound`],
    ['a process inside', (pid) => `/proc/${pid}/ns/net`],
    ['a thread inside', (pid) => `/proc/${pid}/task/${pid}/ns/net`],
    ['the root of a process', (pid) => `/proc/${pid}/root/run/netns/volt-owner`],
  ];
  let inside: ChildProcess;
  beforeAll(async () => {
    await attach('owner', { network: 'island' });
    for (const path of ['/run/netns/link', `${FOLDER}/owner`])
      symlinkSync('/run/netns/volt-owner', path);
    writeFileSync(`${FOLDER}/bound`, '');
    execFileSync('mount', ['--bind', '/run/netns/volt-owner', `${FOLDER}/bound`]);
    const entering = ['nsenter', '--net=/run/netns/volt-owner', 'sleep', '1000'];
    const [file, args] = dyingWithParent(entering);
    inside = spawn(file, args);
    await until(
      'it is inside',
      () => readFileSync(`/proc/${inside.pid}/comm`, 'utf8') === 'sleep\n',
    );
  });
  afterAll(async () => {
    inside.kill('SIGKILL');
    execFileSync('umount', [`${FOLDER}/bound`]);
    await detach('owner');
  });

  test.each(ways)('is refused, by %s', async (_way, path) => {
    // Whatever its network is.
    for (const network of ['volt0', 'island']) {
      const netns = path(inside.pid ?? 0);
      expect(await refusalOf(attach('guest', { network, netns }))).toMatchObject({
        code: 'INVALID_REQUEST',
        details: { path: 'netns', id: 'owner' },
      });
    }
  });

  test('is refused by an agent that was started since, too', async () => {
    await stack.agent.restart('SIGKILL');
    await stack.agent.ready();
    const netns = `/proc/${inside.pid}/ns/net`;
    expect(await refusalOf(attach('guest', { netns }))).toMatchObject({
      code: 'INVALID_REQUEST',
      details: { id: 'owner' },
    });
  });
});

test('an agent that is stopped while its look-ups hang ends, and the next one starts', async () => {
  using silent = mountSilentFiles(`${FOLDER}/silent`);
  const asked = refusalOf(attach('waits', { netns: `${FOLDER}/silent/ns` }));
  await until('it is asked', () => silent.taken() > 0);
  await asked;
  await stack.agent.restart('SIGTERM');
  await stack.agent.ready();
  expect(await attach('after')).toMatchObject({ replayed: false });
  await detach('after');
});
