import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { boot, type Booted } from './systemd.ts';

const here = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

/** A Debian 12 of its own under systemd, in the network namespace of the calling test. */
export type Debian = Booted;

/** Starts one without Node. `packages`: a folder that is /mnt there. Needs a test's sandbox. */
export async function startDebian(packages: string): Promise<Debian> {
  const root = execFileSync('sh', [here('debian-root.sh')], { encoding: 'utf8' }).trim();
  const folder = mkdtempSync('/run/volt-test-debian-');
  for (const name of ['upper', 'work', 'root']) mkdirSync(join(folder, name), { mode: 0o755 });
  return boot({
    folder,
    words: ['sh', here('debian.sh'), root, folder, packages],
    ownRoot: true,
    env: { DEBIAN_FRONTEND: 'noninteractive' },
    limitSeconds: 850,
    isUp: ({ run }) => /running|degraded/.test(run('systemctl', 'is-system-running').stdout.trim()),
  });
}
