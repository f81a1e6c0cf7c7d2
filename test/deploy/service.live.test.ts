import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { AGENT } from '../support/agent.ts';
import { requireTool } from '../support/tools.ts';

// What systemd-analyze says of volt-network-agent.service; unit.live.test.ts starts it.

const ROOT = new URL('../..', import.meta.url).pathname;
const UNIT = 'volt-network-agent.service';
const unit = readFileSync(join(ROOT, 'deploy/systemd', UNIT), 'utf8');

const folder = mkdtempSync(join(tmpdir(), 'volt-test-unit-'));
afterAll(() => {
  rmSync(folder, { recursive: true });
});

const analyze = (...words: string[]) =>
  spawnSync(requireTool('systemd-analyze'), words, { encoding: 'utf8' });

/** The unit with these drop-ins, where nothing else is. */
function installed(dropIns: readonly string[]): string {
  const place = mkdtempSync(join(folder, 'system-'));
  mkdirSync(join(place, `${UNIT}.d`));
  for (const name of dropIns) {
    cpSync(join(ROOT, 'deploy/systemd/tighter', name), join(place, `${UNIT}.d`, name));
  }
  const file = join(place, UNIT);
  writeFileSync(file, unit.replace('/usr/bin/volt-network-agent', AGENT));
  return file;
}

const DROP_INS = [[], ['own-mounts.conf'], ['own-mounts.conf', 'vms-only.conf']];

test.each(DROP_INS)('systemd takes every line of the unit and %s %s', (...dropIns) => {
  const { stderr, status } = analyze('verify', installed(dropIns));
  expect({ stderr, status }).toEqual({ stderr: '', status: 0 });
});

/** The table of operating.md: the unit, then each drop-in beside those above it. */
const documented = [
  ...readFileSync(join(ROOT, 'docs/operating.md'), 'utf8').matchAll(
    /^\| (?:the unit|and `([\w-]+\.conf)`) \|.*\| (\d\.\d) \|$/gm,
  ),
].map(([, dropIn, figure]) => ({ dropIn, figure: Number(figure) }));

test('it is exposed no more than operating.md says', () => {
  expect(documented).toHaveLength(DROP_INS.length);
  for (const [n, { figure }] of documented.entries()) {
    const dropIns = documented.slice(1, n + 1).map(({ dropIn = '' }) => dropIn);
    expect(dropIns).toEqual(DROP_INS[n]);
    const { stdout } = analyze('security', '--no-pager', '--offline=true', installed(dropIns));
    const exposure = Number(/Overall exposure level for .*: (\d+\.\d) /.exec(stdout)?.[1]);
    expect(exposure).toBeGreaterThan(0);
    expect(exposure).toBeLessThanOrEqual(figure);
  }
});
