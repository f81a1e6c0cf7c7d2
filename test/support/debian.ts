import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { boot, type Booted } from './systemd.ts';

const here = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

/** A Debian 12 of its own under systemd, in the network namespace of the calling test. */
export interface Debian extends Booted {
  /** Runs a script as root does who types it, and returns what it says; throws unless every command of it succeeds. */
  readonly shell: (script: string) => string;
}

/** Starts one without Node. `packages`: a folder that is /mnt there. Needs a test's sandbox. */
export async function startDebian(packages: string): Promise<Debian> {
  const root = execFileSync('sh', [here('debian-root.sh')], { encoding: 'utf8' }).trim();
  const folder = mkdtempSync('/run/volt-test-debian-');
  for (const name of ['upper', 'work', 'root']) mkdirSync(join(folder, name), { mode: 0o755 });
  const booted = await boot({
    folder,
    words: ['sh', here('debian.sh'), root, folder, packages],
    ownRoot: true,
    isUp: ({ run }) => /running|degraded/.test(run('systemctl', 'is-system-running').stdout.trim()),
  });
  const env = [
    'PATH=/usr/sbin:/usr/bin:/sbin:/bin',
    'HOME=/root',
    'DEBIAN_FRONTEND=noninteractive',
  ];
  return {
    ...booted,
    shell: (script) => {
      const { stdout, stderr, status } = booted.run('env', '-i', ...env, 'sh', '-euc', script);
      if (status === 0) return stdout;
      throw new Error(`${script}\nended with ${status}:\n${stdout}${stderr}`);
    },
  };
}
