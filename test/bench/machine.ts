import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { cpus, release, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { requireTool } from '../support/tools.ts';
import { NETAVARK } from './rivals.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
/** File systems in memory: a state folder there would cost less than it does on a host. */
const IN_MEMORY = new Set(['tmpfs', 'ramfs']);

/** By what they are. */
export type Facts = Readonly<Record<string, string>>;

/**
 * Makes a folder on a disk, in which everything of this run lies: agents' state, data of servers, programs. It goes with
 * the process, however that ends. Before the sandbox is entered.
 */
export function useDisk(): void {
  const folders = [tmpdir(), '/var/tmp', '/var/lib'];
  const disk = folders.find((folder) => existsSync(folder) && !IN_MEMORY.has(mountOf(folder).type));
  if (disk === undefined) throw new Error(`none of ${folders.join(', ')} is on a disk`);
  const folder = mkdtempSync(join(disk, 'volt-bench-'));
  process.env['TMPDIR'] = folder;
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));
}

/** What the figures depend on. */
export function machineFacts(): Facts {
  const [cpu] = cpus();
  const { type, device } = mountOf(tmpdir());
  return {
    processor: `${cpus().length} × ${cpu?.model.trim() ?? 'unknown'}`,
    memory: `${(totalmem() / 2 ** 30).toFixed(1)} GiB`,
    kernel: `Linux ${release()}`,
    'state folder': `${type} on ${device}`,
    'runtime folder': 'tmpfs',
  };
}

/** Of everything that takes part. */
export function versions(): Facts {
  return {
    'Volt Unified Networking': commit(),
    Node: process.version,
    'nats-server': firstLine('nats-server', '--version').replace(/^.*v/, ''),
    Redis: firstLine('redis-server', '--version').replace(/^.*v=(\S+).*$/, '$1'),
    iproute2: firstLine('ip', '-V').replace(/^.*iproute2-([^,]*).*$/, '$1'),
    'C compiler': firstLine('cc', '--version'),
    // Debian's own do not know.
    'CNI plugins': firstLine('dpkg-query', '-W', '-f', '${Version}', 'containernetworking-plugins'),
    netavark: firstLine(NETAVARK, '--version').replace(/^netavark /, ''),
  };
}

function commit(): string {
  try {
    const words = ['-C', ROOT, 'describe', '--always', '--dirty'];
    return execFileSync('git', words, { encoding: 'utf8' }).trim();
  } catch {
    return 'not of a repository';
  }
}

/** The first line that a program says, to whichever of its outputs. */
function firstLine(program: string, ...words: string[]): string {
  const path = program.startsWith('/') ? program : requireTool(program);
  const { stdout, stderr } = spawnSync(path, words, { encoding: 'utf8', input: '' });
  return `${stdout}${stderr}`.trim().split('\n')[0] ?? 'unknown';
}

/** The file system that a folder lies on (proc_pid_mountinfo(5)). */
function mountOf(folder: string): { readonly type: string; readonly device: string } {
  const mounts = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' '))
    .map(([device = '', at = '', type = '']) => ({ device, at, type }))
    .filter(({ at }) => folder === at || folder.startsWith(at.endsWith('/') ? at : `${at}/`));
  const longest = Math.max(...mounts.map(({ at }) => at.length));
  return (
    mounts.findLast(({ at }) => at.length === longest) ?? { type: 'unknown', device: 'unknown' }
  );
}
