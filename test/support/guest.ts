import { type ChildProcess, spawn } from 'node:child_process';
import { type GuestOptions, qemuCommand } from '../../deploy/guest/qemu.ts';
import { until } from './agent.ts';
import { dyingWithParent, requireTool } from './tools.ts';

export const VOLTNET = new URL('../../deploy/bin/voltnet', import.meta.url).pathname;

export interface Guest extends AsyncDisposable {
  readonly pid: number;
  /** Its serial console so far. */
  output(): string;
  kill(): Promise<void>;
}

/**
 * Boots a real guest on the TAP of an attachment, whose descriptors `voltnet exec` claims; returns once its
 * address is set.
 */
export async function bootGuest(
  id: string,
  guest: Omit<GuestOptions, 'mac'>,
  env: Record<string, string>,
): Promise<Guest> {
  requireTool('qemu-system-x86_64');
  const command = qemuCommand({ ...guest, mac: '{mac}' });
  const [program, args] = dyingWithParent([VOLTNET, 'exec', id, '--', ...command]);
  const child: ChildProcess = spawn(program, args, {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  child.stdout?.on('data', (chunk: Buffer) => (output += chunk.toString()));
  child.stderr?.on('data', (chunk: Buffer) => (output += chunk.toString()));
  const kill = async (): Promise<void> => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const exited = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGKILL');
    await exited;
  };
  try {
    await until(
      'the guest is up',
      () => {
        if (child.exitCode !== null) throw new Error(`QEMU ended: ${output}`);
        return output.includes('GUEST READY');
      },
      120_000,
    );
  } catch (error) {
    await kill();
    throw new Error(`the guest did not start: ${output}`, { cause: error });
  }
  return {
    pid: child.pid ?? 0,
    output: () => output,
    kill,
    [Symbol.asyncDispose]: kill,
  };
}
