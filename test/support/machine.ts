import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { requireTool } from './tools.ts';

/** What tells one machine from another, and one of its boots from the next. */
export interface Machine {
  /** What /etc/machine-id holds. */
  readonly machineId: string;
  readonly bootId?: string;
  readonly hostName?: string;
}

/** The beginning of a command that runs the rest on such a machine. */
export function onMachine(machine: Machine, open: AsyncDisposableStack): string[] {
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-machine-'));
  open.defer(() => rmSync(folder, { recursive: true }));
  const { machineId, bootId, hostName } = machine;
  const steps: string[] = [];
  const put = (name: string, text: string, place: string): void => {
    writeFileSync(join(folder, name), text);
    steps.push(`mount --bind "$0/${name}" ${place}`);
  };
  put('machine-id', machineId, '/etc/machine-id');
  if (bootId !== undefined) put('boot-id', `${bootId}\n`, '/proc/sys/kernel/random/boot_id');
  if (hostName !== undefined) steps.push(`echo ${hostName} >/proc/sys/kernel/hostname`);
  return inOwnMounts(steps.join(' && '), folder);
}

/** The same where /etc is empty. */
export const onMachineWithoutId = (): string[] => inOwnMounts('mount -t tmpfs none /etc', '-');

const inOwnMounts = (script: string, argument: string): string[] => [
  requireTool('unshare'),
  '--mount',
  '--uts',
  '--',
  '/bin/sh',
  '-c',
  `${script} && exec "$@"`,
  argument,
];
