import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { sendPacket } from '#native/packet.ts';
import { firstPacket } from '#native/unix.ts';
import { connectTo, openSocket, SOCK_NONBLOCK, SOCK_SEQPACKET } from '#native/unix-socket.ts';
import { AGENT, until } from '../../support/agent.ts';
import { startStack } from '../../support/stack.ts';
import { dyingWithParent } from '../../support/tools.ts';

// What an agent keeps on its host is its own: nobody else can hold its lock, read its records, or put others there.

const SOMEBODY = 4_000;

let folder = '';
let runtimeDir = '';
let stateDir = '';
beforeEach(() => {
  folder = mkdtempSync('/run/own-');
  chmodSync(folder, 0o755);
  runtimeDir = join(folder, 'runtime');
  stateDir = join(folder, 'state');
});

/** Starts an agent that is to refuse to run. */
function start(): { status: number | null; said: string } {
  const configFile = join(folder, 'agent.json');
  const config = { host: 'h1', runtimeDir, stateDir, redis: { url: 'redis://127.0.0.1:1' } };
  writeFileSync(configFile, JSON.stringify(config));
  const { status, stdout, stderr } = spawnSync(AGENT, ['--config', configFile], {
    encoding: 'utf8',
    timeout: 20_000,
  });
  return { status, said: stdout + stderr };
}

describe('the agent does not start, and says why (78), in', () => {
  const cases: [name: string, prepare: () => void, reason: RegExp][] = [
    [
      'a runtime folder of somebody else',
      () => {
        mkdirSync(runtimeDir);
        chownSync(runtimeDir, SOMEBODY, SOMEBODY);
      },
      /runtimeDir: .*runtime belongs to uid 4000/,
    ],
    [
      'a runtime folder that anybody can write to',
      () => {
        mkdirSync(runtimeDir);
        chmodSync(runtimeDir, 0o1777);
      },
      /runtimeDir: .*written to by others \(mode 1777\)/,
    ],
    [
      'a state folder that a group can write to',
      () => {
        mkdirSync(stateDir);
        chmodSync(stateDir, 0o770);
      },
      /stateDir: .*written to by others \(mode 0770\)/,
    ],
    [
      'a state folder below one of somebody else',
      () => chownSync(folder, SOMEBODY, SOMEBODY),
      /Dir: .*can be replaced by others: \/run\/own-\w+ belongs to uid 4000/,
    ],
    [
      'a runtime folder that a link of its name leads to',
      () => {
        mkdirSync(join(folder, 'real'));
        chownSync(join(folder, 'real'), SOMEBODY, SOMEBODY);
        symlinkSync(join(folder, 'real'), runtimeDir);
      },
      /runtimeDir: .*real belongs to uid 4000/,
    ],
  ];
  test.each(cases)('%s', (_name, prepare, reason) => {
    prepare();
    const { status, said } = start();
    expect(said).toMatch(reason);
    expect(status).toBe(78);
    expect(existsSync(join(runtimeDir, 'agent.lock'))).toBe(false);
  });
});

describe('the lock', () => {
  let holder: ChildProcess | undefined;
  afterEach(() => holder?.kill('SIGKILL'));

  test('is told to be held by who holds it, whatever the file says', async () => {
    mkdirSync(runtimeDir);
    const lock = join(runtimeDir, 'agent.lock');
    writeFileSync(lock, '1\n', { mode: 0o644 });
    const [file, args] = dyingWithParent(['flock', '--no-fork', lock, 'sleep', '1000']);
    holder = spawn(file, args);
    await until('it is held', () => spawnSync('flock', ['-n', lock, 'true']).status === 1);
    const { status, said } = start();
    expect(said).toMatch(new RegExp(`locked by process ${holder.pid} \\(sleep\\)`));
    expect(status).toBe(75);
  });
});

/** Files and folders below this one that somebody else can read, by path and mode. */
function openToOthers(top: string): [path: string, mode: string][] {
  const found: [string, string][] = [];
  for (const name of readdirSync(top, { recursive: true, encoding: 'utf8' })) {
    const { mode } = lstatSync(join(top, name));
    if ((mode & 0o077) !== 0) found.push([name, (mode & 0o777).toString(8)]);
  }
  return found;
}

test('of all that an agent makes, others can use the socket alone', async () => {
  await using stack = await startStack();
  const { agent, client, host } = stack;
  // As an earlier version left it.
  chmodSync(join(agent.runtimeDir, 'agent.lock'), 0o644);
  await agent.restart();
  await agent.ready();
  await client.attach(host, { id: 'one', workload: 'vm-one', kind: 'vm', network: 'volt0' });
  await client.attach(host, { id: 'two', workload: 'vm-two', kind: 'vm', network: 'volt0' });
  await client.detach(host, { id: 'two' });
  await stack.gone('two');
  // And the host id, for a command line that is somebody else's.
  expect(openToOthers(agent.runtimeDir)).toEqual([
    ['agent.sock', '666'],
    ['host', '644'],
  ]);
  expect(openToOthers(agent.stateDir)).toEqual([]);
  expect(readdirSync(agent.stateDir).length).toBeGreaterThan(3);
  expect(statSync(agent.stateDir).mode & 0o777).toBe(0o700);
  const seize = ['--reuid', String(SOMEBODY), '--clear-groups', 'flock', '-n'];
  const lock = join(agent.runtimeDir, 'agent.lock');
  expect(spawnSync('setpriv', [...seize, lock, 'true']).stderr.toString()).toMatch(/Permission/);
  // Through the socket nobody hands it anything: the kernel refuses, or the connection ends.
  using socket = openSocket(SOCK_SEQPACKET | SOCK_NONBLOCK);
  connectTo(socket, agent.socketPath);
  const offer = async (): Promise<string> => {
    sendPacket(socket.fd, Buffer.from('{"op":"health"}'), [0]);
    return (await firstPacket(socket.fd, 'agent.sock', 5_000)).bytes.toString();
  };
  expect(await offer().catch((error: unknown) => String(error))).toMatch(/EPERM|^$/);
});
