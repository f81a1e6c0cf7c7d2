import { execFileSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Socket as Connection } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Authority, createAuthority } from '../../support/certificates.ts';
import { freePort, type Server, startNats } from '../../support/servers.ts';
import { type Ended, runVoltnet } from '../../support/voltnet.ts';

// NATS cannot be used: each command says why, without secrets, and ends with its exit code.

const SECRET = 'Secret-of-nats';
/** The code of a resolver's answer: there is no such name. */
const NO_NAME = 3;
const TYPE_A = 1;
/** The name in the question, type A, class IN, for a minute: 127.0.0.1. */
const LOOPBACK = Buffer.from('c00c000100010000003c00047f000001', 'hex');

const folder = mkdtempSync(join(tmpdir(), 'volt-test-unreachable-'));
const open = new AsyncDisposableStack();
let authority: Authority;
let closed: number;
let silent: number;
let stopped: Server;
let secured: Server;
let plain: Server;
let encrypted: Server;

beforeAll(async () => {
  authority = open.use(createAuthority());
  const { certFile, keyFile } = authority.certificates;
  const bare = join(folder, 'no-jetstream.conf');
  writeFileSync(bare, 'max_payload: 1MB\n');
  closed = await freePort();
  silent = await silentPort();
  [stopped, secured, plain, encrypted] = await Promise.all([
    startNats(),
    startNats({
      config: `authorization { users: [ { user: "agent", password: "${SECRET}" } ] }`,
    }),
    startNats({ configFile: bare }),
    startNats({ config: `tls { cert_file: "${certFile}", key_file: "${keyFile}" }` }),
  ]);
  for (const server of [stopped, secured, plain, encrypted]) open.defer(() => server.stop());
  stopped.pause();
  await startResolver();
});
afterAll(async () => {
  await open.disposeAsync();
  rmSync(folder, { recursive: true });
});

/** Accepts connections, and says nothing. */
async function silentPort(): Promise<number> {
  const connections = new Set<Connection>();
  const server = createServer(
    (connection) => void connections.add(connection.on('error', () => {})),
  );
  const port = await freePort();
  server.listen(port, '127.0.0.1');
  await once(server, 'listening');
  open.defer(() => {
    for (const connection of connections) connection.destroy();
    server.close();
  });
  return port;
}

/** The resolver of this sandbox: knows `here.example.org` alone, and does not answer for what begins with `silent`. */
async function startResolver(): Promise<void> {
  const file = join(folder, 'resolv.conf');
  writeFileSync(file, 'nameserver 127.0.0.1\noptions timeout:30 attempts:2\n');
  execFileSync('mount', ['--bind', file, '/etc/resolv.conf']);
  const socket = createSocket('udp4', (query, { port, address }) => {
    if (!query.includes('silent')) socket.send(resolved(query), port, address);
  });
  socket.bind(53, '127.0.0.1');
  await once(socket, 'listening');
  open.defer(() => void socket.close());
}

/** The answer to one question (RFC 1035, 4.1): header, question, and an address where one of IPv4 is asked for. */
function resolved(query: Buffer): Buffer {
  const afterName = query.indexOf(0, 12) + 1;
  const question = query.subarray(12, afterName + 4);
  const isKnown = query.includes('here');
  const address = isKnown && query.readUInt16BE(afterName) === TYPE_A ? LOOPBACK : Buffer.alloc(0);
  const header = Buffer.alloc(12);
  query.copy(header, 0, 0, 2);
  header.writeUInt16BE(isKnown ? 0x8180 : 0x8180 | NO_NAME, 2);
  header.writeUInt16BE(1, 4);
  header.writeUInt16BE(address.length === 0 ? 0 : 1, 6);
  return Buffer.concat([header, question, address]);
}

const at = (port: number, user = ''): string => `nats://${user}127.0.0.1:${port}`;
/** A host whose agent does not run here, so that nobody else is asked. */
const ask = (url: string, words: readonly string[], env = {}): Promise<Ended> =>
  runVoltnet(['--nats', url, '--host', 'h9', '--timeout', '2s', ...words], { env });

describe('says why, and ends', () => {
  const commands = [['list'], ['watch'], ['setup'], ['network', 'list'], ['detach', 'a']];
  const reasons: [name: string, url: () => string, exitCode: number, said: RegExp][] = [
    ['a port that nobody listens on', () => at(closed), 3, /: connection refused/],
    ['a server that accepts and says nothing', () => at(silent), 3, /no answer within 2000 ms/],
    ['a server that is stopped', () => at(stopped.port), 3, /no answer within 2000 ms/],
    ['a wrong password', () => at(secured.port, `agent:x${SECRET}@`), 7, /wrong user, password/],
    ['no password', () => at(secured.port), 7, /wrong user, password, token or key, or none/],
    ['a wrong token', () => at(secured.port, `x${SECRET}@`), 7, /wrong user, password, token/],
    ['an unknown name', () => 'nats://nats.example.org', 3, /not known to DNS/],
    ['a resolver that does not answer', () => 'nats://silent.example.org', 3, /no answer within/],
    ['a certificate of a stranger', () => at(encrypted.port), 3, /TLS: nobody who is trusted/],
  ];
  const table = reasons.flatMap(([name, ...rest]) =>
    commands.map((words) => [`${name}: ${words.join(' ')}`, words, ...rest] as const),
  );
  test.each(table)('%s', async (_, words, url, exitCode, said) => {
    const ended = await ask(url(), words);
    expect(ended).toMatchObject({ exitCode, stdout: '', stderr: expect.stringMatching(said) });
    expect(ended.stderr).toMatch(/^voltnet: cannot connect to NATS at nats:/);
    expect(ended.stderr).not.toContain(SECRET);
  });

  test('a certificate for another name', async () => {
    const config = join(folder, 'tls.json');
    const { caFile } = authority.certificates;
    writeFileSync(config, JSON.stringify({ nats: { tls: { caFile } } }));
    const to = (address: string): Promise<Ended> =>
      ask(`nats://${address}:${encrypted.port}`, ['--config', config, 'watch', '--count', '0']);
    expect(await to('127.0.0.1')).toMatchObject({ exitCode: 0 });
    expect(await to('here.example.org')).toMatchObject({
      exitCode: 3,
      stderr: expect.stringMatching(/TLS: the server's certificate is for another name/),
    });
  });

  test('the next server of a list is tried in the same time', async () => {
    const url = `${at(silent)},${at(plain.port)}`;
    for (let tries = 0; tries < 3; tries += 1) {
      expect(await ask(url, ['watch', '--count', '0'])).toMatchObject({ exitCode: 0 });
    }
  });

  test('as JSON, too', async () => {
    const { exitCode, stderr } = await ask(at(secured.port, `agent:x${SECRET}@`), [
      '--json',
      'list',
    ]);
    const { error }: { error: object } = JSON.parse(stderr);
    expect({ exitCode, error }).toMatchObject({ exitCode: 7, error: { code: 'UNAUTHORIZED' } });
    expect(stderr).not.toContain(SECRET);
  });
});

describe('a server without JetStream', () => {
  test('setup says so', async () => {
    expect(await ask(at(plain.port), ['setup'])).toMatchObject({
      exitCode: 3,
      stderr: expect.stringMatching(/has no JetStream/),
    });
  });

  test('an account without JetStream, too', async () => {
    const config = `accounts { A: { users: [ { user: "a", password: "${SECRET}" } ] } }`;
    const server = await startNats({ config });
    try {
      const { exitCode, stderr } = await ask(at(server.port, `a:${SECRET}@`), ['setup']);
      expect({ exitCode, stderr }).toMatchObject({
        exitCode: 3,
        stderr: expect.stringMatching(/not for this account/),
      });
    } finally {
      await server.stop();
    }
  });

  test('watch needs none', async () => {
    expect((await ask(at(plain.port), ['watch', '--count', '0'])).exitCode).toBe(0);
  });
});
