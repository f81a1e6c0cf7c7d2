import { spawn } from 'node:child_process';
import { once } from 'node:events';

const VOLTNET = new URL('../../deploy/bin/voltnet', import.meta.url).pathname;
const ENDS_WITHIN_MS = 45_000;

export interface Ended {
  /** null where it had to be killed: it would not end. */
  readonly exitCode: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the command line as installed, to its end. */
export async function runVoltnet(
  words: readonly string[],
  { env = {}, uid }: { env?: Readonly<Record<string, string>>; uid?: number } = {},
): Promise<Ended> {
  const child = spawn(VOLTNET, words, {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: ENDS_WITHIN_MS,
    killSignal: 'SIGKILL',
    ...(uid !== undefined && { uid, gid: uid }),
  });
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
  await once(child, 'close');
  return { exitCode: child.exitCode, stdout, stderr };
}
