import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { until } from './agent.ts';
import { dyingWithParent } from './tools.ts';

const VOLTNET = new URL('../../deploy/bin/voltnet', import.meta.url).pathname;

export interface RunningDashboard {
  /** With the token where there is one. */
  readonly url: string;
  /** SIGINT, as Ctrl-C sends it; resolves with its signal or exit code. */
  interrupt(): Promise<string | number | null>;
}

/** Starts `voltnet dashboard` as installed, on a free port; resolves once it serves. */
export async function startDashboard({
  natsUrl,
  words = [],
  listen = '127.0.0.1:0',
}: {
  natsUrl: string;
  words?: readonly string[];
  listen?: string;
}): Promise<RunningDashboard> {
  const asked = ['--nats', natsUrl, '--host', 'h1', '--timeout', '5s', '--json'];
  const command = [VOLTNET, ...asked, 'dashboard', '--listen', listen, ...words];
  const [program, args] = dyingWithParent(command);
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  const exited = once(child, 'exit');
  let out = '';
  let errors = '';
  child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (errors += chunk.toString()));
  await until('the dashboard serves', () => {
    if (child.exitCode !== null) throw new Error(`the dashboard ended: ${errors}`);
    return out.includes('\n');
  });
  const { url } = JSON.parse(out) as { url: string };
  return {
    url,
    interrupt: async () => {
      child.kill('SIGINT');
      const [code, signal] = (await exited) as [number | null, string | null];
      return signal ?? code;
    },
  };
}
