import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { requireTool } from './tools.ts';

/** The beginning of a command that runs the rest where /etc/machine-id has this content. */
export function onMachine(machineId: string, open: AsyncDisposableStack): string[] {
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-machine-'));
  open.defer(() => rmSync(folder, { recursive: true }));
  const file = join(folder, 'machine-id');
  writeFileSync(file, machineId);
  return inOwnMounts('mount --bind "$0" /etc/machine-id', file);
}

/** The same where /etc is empty. */
export const onMachineWithoutId = (): string[] => inOwnMounts('mount -t tmpfs none /etc', '-');

const inOwnMounts = (script: string, argument: string): string[] => [
  requireTool('unshare'),
  '--mount',
  '--',
  '/bin/sh',
  '-c',
  `${script} && exec "$@"`,
  argument,
];
