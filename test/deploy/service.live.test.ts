import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import { AGENT } from '../support/agent.ts';
import { ip } from '../support/kernel.ts';
import { startStack, VOLT0 } from '../support/stack.ts';
import { dyingWithParent, requireTool } from '../support/tools.ts';

// volt-network-agent.service takes away what the agent does not need, and nothing that it does: the agent runs with
// the unit's capabilities, and what it calls is compared with what the unit's filters let through.

const UNIT = new URL('../../deploy/systemd/volt-network-agent.service', import.meta.url).pathname;
const unit = readFileSync(UNIT, 'utf8');

/** The words of one setting of the unit. */
const setting = (key: string): string[] =>
  (new RegExp(`^${key}=(.*)$`, 'm').exec(unit)?.[1] ?? '').split(' ');

const folder = mkdtempSync(join(tmpdir(), 'volt-test-unit-'));
afterAll(() => {
  rmSync(folder, { recursive: true });
});

test('systemd takes every line of the unit', () => {
  const copy = join(folder, 'volt-network-agent.service');
  writeFileSync(copy, unit.replace('/usr/bin/volt-network-agent', AGENT));
  const { stderr, status } = spawnSync(requireTool('systemd-analyze'), ['verify', copy], {
    encoding: 'utf8',
  });
  expect({ stderr, status }).toEqual({ stderr: '', status: 0 });
});

// systemd.exec(5), under PrivateMounts=: each of these gives the unit a mount namespace, which sends nothing back.
test('the unit has the mounts of the host, so that /run/netns is that of the host', () => {
  const own =
    /^(Private(Tmp|Devices|Mounts|IPC)|Protect(System|Home|Kernel\w+|ControlGroups|Proc|Hostname)|ProcSubset|MountFlags|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec)Paths|Bind\w*Paths|TemporaryFileSystem|Root\w+|DynamicUser|MountImages|Extension\w+)=/gm;
  expect(unit.match(own)).toBe(null);
});

/** Names of all system calls that SystemCallFilter= lets through, its sets resolved. */
function allowedCalls(): Set<string> {
  const listing = execFileSync(requireTool('systemd-analyze'), ['--no-pager', 'syscall-filter'], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const sets = new Map<string, string[]>();
  for (const part of listing.split('\n\n')) {
    const [name = '', ...lines] = part.split('\n').map((line) => line.trim());
    sets.set(
      name,
      lines.filter((line) => line !== '' && !line.startsWith('#')),
    );
  }
  const resolve = (word: string): string[] =>
    word.startsWith('@') ? (sets.get(word) ?? []).flatMap(resolve) : [word];
  return new Set(setting('SystemCallFilter').flatMap(resolve));
}

test('the agent does its work with the capabilities and the system calls of the unit', async () => {
  const trace = join(folder, 'trace');
  const capabilities = setting('CapabilityBoundingSet').map((name) =>
    name.replace(/^CAP_/, '+').toLowerCase(),
  );
  {
    await using stack = await startStack({
      networks: [
        VOLT0,
        { network: 'alone', type: 'isolated' },
        { network: 'inner', type: 'host-only', subnet: '10.49.0.0/24', gateway: '10.49.0.1' },
      ] as { network: string }[],
      // -D: the agent is the child, and strace looks on.
      wrap: [
        ...[requireTool('strace'), '-D', '-f', '-qq', '-s', '0', '-o', trace],
        ...[requireTool('setpriv'), '--no-new-privs', '--bounding-set'],
        ...[['-all', ...capabilities].join(','), '--'],
      ],
    });
    const status = readFileSync(`/proc/${stack.agent.pid}/status`, 'utf8');
    expect(status).toMatch(/^NoNewPrivs:\t1$/m);
    const attach = async (request: Omit<AttachRequest, 'id'>) =>
      (await stack.client.attach(stack.host, { id: request.workload, ...request })).attachment;
    // Somebody's process with more capabilities than the agent has.
    const [program, args] = dyingWithParent([requireTool('unshare'), '--net', 'sleep', '600']);
    const other = spawn(program, args, { stdio: 'ignore' });
    const netns = `/proc/${other.pid}/ns/net`;
    await attach({ workload: 'container-a', kind: 'container', network: 'volt0', netns });
    await attach({ workload: 'vm-a', kind: 'vm', network: 'volt0' });
    await attach({ workload: 'container-b', kind: 'container', network: 'alone' });
    expect(ip('netns').map(({ name }) => name)).toEqual(['volt-container-b']);
    await using listener = createServer().listen(80);
    await once(listener, 'listening');
    const port = { protocol: 'tcp', hostPort: 80, port: 80 } as const;
    const refused = attach({ workload: 'vm-b', kind: 'vm', network: 'inner', ports: [port] });
    await expect(refused).rejects.toMatchObject({ code: 'PORT_IN_USE' });
    await expect(refused).rejects.toThrow(String(process.pid));
    for (const id of ['container-a', 'vm-a', 'container-b']) {
      await stack.client.detach(stack.host, { id });
      await stack.gone(id);
    }
    expect(ip('netns')).toEqual([]);
    other.kill();
  }
  const lines = readFileSync(trace, 'utf8').split('\n');
  const called = new Set(lines.map((line) => /^\d+ +(\w+)\(/.exec(line)?.[1] ?? 'read'));
  expect(called).toContain('setns');
  const allowed = allowedCalls();
  expect([...called].filter((name) => !allowed.has(name))).toEqual([]);
  const matches = (what: RegExp): Set<string> =>
    new Set(lines.flatMap((line) => what.exec(line)?.[1] ?? []));
  const families = setting('RestrictAddressFamilies');
  expect([...matches(/ socket\((\w+)/)].filter((name) => !families.includes(name))).toEqual([]);
  expect(setting('RestrictNamespaces')).toEqual(['net']);
  expect(matches(/ (?:setns\(\d+, |unshare\()(\w+(?:\|\w+)*)/)).toEqual(new Set(['CLONE_NEWNET']));
});
