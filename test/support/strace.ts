import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { until } from './agent.ts';
import { dyingWithParent, requireTool } from './tools.ts';

interface Process {
  readonly pid: number;
}

/** What befalls a process at a system call: it is killed before it, or the call is not made and fails. */
export type Fate = 'signal=SIGKILL' | (typeof REFUSALS)[number];

export const REFUSALS = ['error=ENOMEM', 'error=ENOBUFS', 'error=EINTR'] as const;

/** The `when`-th call of this name that the process's main thread makes, from when strace is attached. */
export interface Point {
  readonly call: string;
  readonly when: number;
}

const ANNOUNCED_MS = 100;

/** Has something happen at one system call of a process, until disposed. */
export async function atCall(
  process: Process,
  { call, when }: Point,
  fate: Fate,
): Promise<AsyncDisposable> {
  // What a container announces a moment after its attach would be counted.
  await sleep(ANNOUNCED_MS);
  const inject = ['-e', `trace=${call}`, '-e', `inject=${call}:${fate}:when=${when}`];
  return straced(process, ['-o', '/dev/null', ...inject]);
}

/** The system calls of these names that a process's main thread makes meanwhile, in order. */
export async function callsDuring(
  process: Process,
  names: readonly string[],
  work: () => Promise<void>,
): Promise<Point[]> {
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-strace-'));
  const file = join(folder, 'calls');
  try {
    await sleep(ANNOUNCED_MS);
    const tracing = await straced(process, ['-o', file, '-e', `trace=${names.join()}`]);
    await work();
    await tracing[Symbol.asyncDispose]();
    const seen = new Map<string, number>();
    return readFileSync(file, 'utf8')
      .split('\n')
      .flatMap((line) => {
        const call = /^(\w+)\(/.exec(line)?.[1];
        if (call === undefined) return [];
        const when = (seen.get(call) ?? 0) + 1;
        seen.set(call, when);
        return [{ call, when }];
      });
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function straced({ pid }: Process, options: readonly string[]): Promise<AsyncDisposable> {
  const [program, args] = dyingWithParent([
    requireTool('strace'),
    ...[...options, '-p', String(pid)],
  ]);
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  const exited = once(child, 'exit');
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => (said += chunk.toString()));
  await until('strace is attached', () => said.includes('attached'));
  return {
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGTERM');
      await exited;
    },
  };
}
