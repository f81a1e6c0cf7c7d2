import { spawnSync } from 'node:child_process';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { AGENT } from '../../support/agent.ts';
import { onMachine, onMachineWithoutId } from '../../support/machine.ts';

test.each([
  ['is empty', 'is empty', ''],
  ['is that of an image', 'says "uninitialized"', 'uninitialized\n'],
  ["is no machine's", 'says "0', `${'0'.repeat(32)}\n`],
  ['is none', 'is no machine id', 'two words\n'],
  ['is missing', 'cannot be read: ENOENT', null],
])('an agent does not start where the machine id %s, and says what to do', async (_, said, id) => {
  await using open = new AsyncDisposableStack();
  const folder = mkdtempSync('/run/machine-');
  const configFile = join(folder, 'agent.json');
  const [runtimeDir, stateDir] = [join(folder, 'runtime'), join(folder, 'state')];
  writeFileSync(configFile, JSON.stringify({ host: 'h1', runtimeDir, stateDir }));
  const wrap = id === null ? onMachineWithoutId() : onMachine({ machineId: id }, open);
  const { status, stderr } = spawnSync('env', [...wrap, AGENT, '--config', configFile], {
    encoding: 'utf8',
    timeout: 20_000,
  });
  expect(stderr).toContain(`/etc/machine-id ${said}`);
  expect(stderr).toContain('systemd-machine-id-setup');
  expect(status).toBe(78);
});
