import { type ChildProcess, spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Certificates } from './certificates.ts';
import { dyingWithParent, requireTool } from './tools.ts';

/** A real server on loopback, in the namespace of whoever started it, with data in a folder of its own. */
export interface Server {
  readonly url: string;
  readonly port: number;
  readonly pid: number;
  /** Where it keeps its data. */
  readonly folder: string;
  /** Ends it and removes its data. */
  stop(): Promise<void>;
  /** SIGKILL; its data stays. */
  kill(): Promise<void>;
  /** Starts it again on its port with the data that it left. */
  restart(): Promise<void>;
  pause(): void;
  resume(): void;
}

/** nats-server with JetStream. `config`: what its configuration file says beside; `configFile`: that file. */
export async function startNats({
  port,
  config,
  configFile,
  address = '127.0.0.1',
}: {
  port?: number;
  config?: string;
  configFile?: string;
  /** Where it listens. */
  address?: string;
} = {}): Promise<Server> {
  const own = port ?? (await freePort());
  return startServer('nats', own, (folder) => {
    const file = configFile ?? join(folder, 'nats.conf');
    if (config !== undefined) writeFileSync(file, config);
    return [
      requireTool('nats-server'),
      ...(config === undefined && configFile === undefined ? [] : ['--config', file]),
      ...['--addr', address, '--port', String(own)],
      ...(configFile === undefined ? ['--jetstream', '--store_dir', folder] : []),
    ];
  });
}

/** Three servers that are one cluster, with JetStream. */
export async function startNatsCluster(): Promise<readonly [Server, Server, Server]> {
  const ports = [await freePort(), await freePort(), await freePort()] as const;
  const routes = ports.map((port) => `nats://127.0.0.1:${port}`).join(', ');
  const start = (index: 0 | 1 | 2): Promise<Server> =>
    startNats({
      config: [
        `server_name: n${index + 1}`,
        // As in deploy/nats/.
        'ping_interval: "5s", ping_max: 2',
        `cluster { name: test, listen: "127.0.0.1:${ports[index]}", routes: [${routes}] }`,
      ].join('\n'),
    });
  return Promise.all([start(0), start(1), start(2)]);
}

/** redis-server. `args` as on its command line: `--appendonly yes`. With `tls` its port speaks TLS alone. */
export async function startRedis({
  args = [],
  port,
  tls,
}: {
  args?: readonly string[];
  port?: number;
  tls?: Certificates | undefined;
} = {}): Promise<Server> {
  const own = port ?? (await freePort());
  const server = await startServer('redis', own, (folder) => [
    requireTool('redis-server'),
    ...['--bind', '127.0.0.1', '--dir', folder, '--save', '', '--daemonize', 'no'],
    ...portArgs(own, tls),
    ...args,
  ]);
  return tls === undefined ? server : Object.assign(server, { url: `rediss://127.0.0.1:${own}` });
}

/** redis-server as a Sentinel; `lines` are its configuration, which it rewrites as it learns. */
export async function startSentinel({
  lines,
  tls,
}: {
  lines: readonly string[];
  tls?: Certificates | undefined;
}): Promise<Server> {
  const own = await freePort();
  return startServer('redis', own, (folder) => {
    const file = join(folder, 'sentinel.conf');
    writeFileSync(file, lines.join('\n'));
    const address = ['--bind', '127.0.0.1', '--dir', folder, ...portArgs(own, tls)];
    return [requireTool('redis-server'), file, '--sentinel', ...address];
  });
}

/** TLS for servers and for whoever talks to them, other servers too: both sides show a certificate. */
const portArgs = (port: number, tls: Certificates | undefined): string[] =>
  tls === undefined
    ? ['--port', String(port)]
    : [
        ...['--port', '0', '--tls-port', String(port), '--tls-ca-cert-file', tls.caFile],
        ...['--tls-cert-file', tls.certFile, '--tls-key-file', tls.keyFile],
        ...['--tls-replication', 'yes', '--tls-auth-clients', 'yes'],
      ];

const START_TIMEOUT_MS = 15_000;

async function startServer(
  scheme: 'nats' | 'redis',
  port: number,
  commandIn: (folder: string) => string[],
): Promise<Server> {
  const folder = mkdtempSync(join(tmpdir(), `volt-test-${scheme}-`));
  const command = commandIn(folder);
  let child = await launch(command, port);
  const end = async (signal: NodeJS.Signals): Promise<void> => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const exited = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGCONT');
    child.kill(signal);
    await exited;
  };
  return {
    url: `${scheme}://127.0.0.1:${port}`,
    port,
    folder,
    get pid() {
      return child.pid ?? 0;
    },
    stop: async () => {
      await end('SIGKILL');
      rmSync(folder, { recursive: true, force: true });
    },
    kill: () => end('SIGKILL'),
    restart: async () => {
      await end('SIGTERM');
      child = await launch(command, port);
    },
    pause: () => child.kill('SIGSTOP'),
    resume: () => child.kill('SIGCONT'),
  };
}

async function launch(command: readonly string[], port: number): Promise<ChildProcess> {
  const [program, args] = dyingWithParent(command);
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  const keep = (chunk: Buffer): void => {
    output = (output + chunk.toString()).slice(-4_000);
  };
  child.stdout.on('data', keep);
  child.stderr.on('data', keep);
  const end = Date.now() + START_TIMEOUT_MS;
  while (!(await accepts(port))) {
    if (child.exitCode !== null) throw new Error(`${program} ended: ${output}`);
    if (Date.now() > end) throw new Error(`${program} does not listen on ${port}: ${output}`);
    await sleep(20);
  }
  return child;
}

// Below the ports that the kernel gives to outgoing connections (ip_local_port_range): one of those could take
// a port between here and the start of its server.
const FIRST_PORT = 10_000;
const LAST_PORT = 32_000;
// Test files that run side by side, each in a process, have ports of their own: a server that is killed and
// started again finds its port free, and no two look at one free port at the same time.
const SHARES = 8;
const SHARE = Math.floor((LAST_PORT - FIRST_PORT) / SHARES);
const firstOfShare = FIRST_PORT + (Number(process.env['VITEST_POOL_ID'] ?? 0) % SHARES) * SHARE;
const given = new Set<number>();

/** A port of 127.0.0.1 that nobody listens on, given to nobody else in this process. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(firstOfShare, firstOfShare + SHARE);
    if (given.has(port) || !(await canListen(port))) continue;
    given.add(port);
    return port;
  }
}

function canListen(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host: '127.0.0.1', port });
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}
