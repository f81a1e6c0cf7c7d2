import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';

const PACKAGES: Readonly<Record<string, string>> = {
  'nats-server': 'nats-server',
  'redis-server': 'redis-server',
  openssl: 'openssl',
  ip: 'iproute2',
  bridge: 'iproute2',
  ping: 'iputils-ping',
  strace: 'strace',
  cc: 'gcc libc6-dev',
  setpriv: 'util-linux',
  unshare: 'util-linux',
  'systemd-analyze': 'systemd',
  podman: 'podman runc',
  python3: 'python3 python3-msgpack',
  'qemu-system-x86_64': 'qemu-system-x86',
  promtool: 'prometheus',
};

/**
 * A command that ends with the process that starts it, also when that is killed: no test, however it dies,
 * leaves a server behind.
 */
export const dyingWithParent = (command: readonly string[]): [string, string[]] => [
  requireTool('setpriv'),
  ['--pdeathsig', 'KILL', '--', ...command],
];

/** Path of a program. A test that needs one that is missing fails with the command that installs it. */
export function requireTool(name: string): string {
  const folders = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin:/usr/bin`.split(delimiter);
  for (const folder of folders) {
    const path = join(folder, name);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      continue;
    }
  }
  throw new Error(`${name} is missing: apt-get install ${PACKAGES[name] ?? name}`);
}
