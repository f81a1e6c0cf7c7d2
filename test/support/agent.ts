import { type ChildProcess, spawn } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  globSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { requestSeqpacket } from '#native/unix.ts';
import { dyingWithParent } from './tools.ts';

export const AGENT = new URL('../../deploy/bin/volt-network-agent', import.meta.url).pathname;
// An emulated guest on a busy machine takes a minute.
const START_TIMEOUT_MS = 180_000;

export interface RunningAgent {
  readonly host: string;
  readonly pid: number;
  readonly runtimeDir: string;
  readonly stateDir: string;
  readonly socketPath: string;
  readonly configFile: string;
  /** All that it has written. */
  output(): string;
  health(): Promise<Record<string, unknown>>;
  /** Until NATS and Redis are connected, and leases can be granted. */
  ready(): Promise<void>;
  /** SIGTERM, and the folders removed; resolves with its exit code. */
  stop(): Promise<number | null>;
  /** SIGKILL; the folders stay. */
  kill(): Promise<void>;
  /** Resolves when the process that runs now has ended, whatever ends it. */
  ended(): Promise<void>;
  /** SIGTERM or SIGKILL, then a new process on the same folders. */
  restart(signal?: NodeJS.Signals): Promise<void>;
}

/** Starts the agent as installed, with folders of its own; returns when its socket answers. */
export async function startAgent(
  options: {
    config?: {
      readonly host?: string | undefined;
      readonly runtimeDir?: string;
      readonly stateDir?: string;
      readonly [key: string]: unknown;
    };
    env?: Record<string, string>;
    wrap?: readonly string[];
  } = {},
): Promise<RunningAgent> {
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-agent-'));
  // The runtime folder is on the sandbox's tmpfs, as it is on a host.
  const runtimeDir = options.config?.runtimeDir ?? mkdtempSync('/run/volt-test-');
  chmodSync(runtimeDir, 0o755);
  const stateDir = options.config?.stateDir ?? join(folder, 'state');
  const networksDir = join(folder, 'networks');
  mkdirSync(networksDir);
  const config = {
    host: 'h1',
    runtimeDir,
    stateDir,
    networksDir,
    heartbeatSeconds: 1,
    ...options.config,
  };
  const configFile = join(folder, 'agent.json');
  writeFileSync(configFile, JSON.stringify(config));
  const socketPath = join(runtimeDir, 'agent.sock');
  let output = '';
  const health = async (): Promise<Record<string, unknown>> => {
    const { bytes } = await requestSeqpacket(socketPath, Buffer.from('{"op":"health"}'));
    const answer = JSON.parse(bytes.toString()) as { health: Record<string, unknown> };
    return answer.health;
  };
  let ended = Promise.resolve();
  const launch = async (): Promise<ChildProcess> => {
    const command = [...(options.wrap ?? []), AGENT, '--config', configFile];
    const [program, args] = dyingWithParent(command);
    const env = { ...process.env, ...options.env };
    const child = spawn(program, args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    ended = new Promise((resolve) => child.once('exit', () => resolve()));
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
    const end = Date.now() + START_TIMEOUT_MS;
    for (;;) {
      if (child.exitCode !== null) throw new Error(`the agent ended: ${output}`);
      if (Date.now() > end) throw new Error(`the agent does not answer: ${output}`);
      if (existsSync(socketPath) && (await health().catch(() => null))?.['pid'] === child.pid)
        break;
      await sleep(20);
    }
    return child;
  };
  let child = await launch();
  const end = async (signal: NodeJS.Signals): Promise<number | null> => {
    if (child.exitCode !== null || child.signalCode !== null) return child.exitCode;
    const exited = new Promise<number | null>((resolve) => child.once('exit', resolve));
    child.kill(signal);
    return exited;
  };
  return {
    host: readFileSync(join(runtimeDir, 'host'), 'utf8').trim(),
    runtimeDir,
    stateDir,
    socketPath,
    configFile,
    get pid() {
      return child.pid ?? 0;
    },
    output: () => output,
    health,
    ready: async () => {
      await until('the agent is connected', async () => {
        const { nats, requests, session } = await health();
        return nats === 'connected' && requests === 'ready' && (session as { open: boolean }).open;
      });
    },
    stop: async () => {
      const code = await end('SIGTERM');
      endDnsmasqs(runtimeDir);
      for (const own of [folder, runtimeDir]) rmSync(own, { recursive: true, force: true });
      return code;
    },
    kill: async () => {
      await end('SIGKILL');
    },
    ended: () => ended,
    restart: async (signal = 'SIGTERM') => {
      await end(signal);
      child = await launch();
    },
  };
}

/** Ends what goes on when an agent ends. */
function endDnsmasqs(runtimeDir: string): void {
  for (const name of globSync(join(runtimeDir, 'dnsmasq/*/state/pid'))) {
    try {
      process.kill(Number(readFileSync(name, 'utf8')));
    } catch {
      // It has ended by itself.
    }
  }
}

/** Repeats a question until the answer is yes; an error counts as no. */
export async function until(
  what: string,
  ask: () => Promise<boolean> | boolean,
  timeoutMs = 30_000,
): Promise<void> {
  const end = Date.now() + timeoutMs;
  let last: unknown;
  while (Date.now() < end) {
    try {
      if (await ask()) return;
    } catch (error) {
      last = error;
    }
    await sleep(10);
  }
  throw new Error(`not in ${timeoutMs} ms: ${what}`, { cause: last });
}
