import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { once } from 'node:events';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { until } from './agent.ts';
import { dyingWithParent, requireTool } from './tools.ts';

const SCRIPT = fileURLToPath(new URL('systemd.sh', import.meta.url));
const CHECKOUT = fileURLToPath(new URL('../..', import.meta.url));
const UNITS = '/run/systemd/system';

/** Where units find this checkout. */
export const INSTALLED = '/opt/volt-network';

/** Debian's systemd as PID 1 of namespaces of its own, in the network namespace of the calling test. */
export interface Systemd extends AsyncDisposable {
  /** Runs a program where systemd is. */
  readonly run: (...words: string[]) => { stdout: string; stderr: string; status: number | null };
  /** The same, with the environment of root who types it. */
  readonly runTyped: Systemd['run'];
  /** Runs a script as root does who types it, and returns what it says; throws unless every command of it succeeds. */
  readonly shell: (script: string) => string;
  /** `systemctl`; throws with what it and the unit say unless it succeeds. */
  readonly systemctl: (...words: string[]) => string;
  /** One property of a unit. */
  readonly show: (unit: string, property: string) => string;
  /** Puts units, and files of their drop-ins (`x.service.d/y.conf`). */
  readonly put: (files: Readonly<Record<string, string>>) => void;
}

/**
 * Starts it, with these files in its view of /etc and /usr/bin. Control groups, device policies and filters are real:
 * a throw says what this machine lacks. Needs a test's sandbox.
 */
export async function startSystemd(view: {
  readonly etc: Readonly<Record<string, string>>;
  readonly bin: Readonly<Record<string, string>>;
}): Promise<Systemd> {
  const folder = mkdtempSync('/run/volt-test-systemd-');
  for (const place of ['etc', 'bin', 'lib', 'opt']) {
    mkdirSync(join(folder, place), { mode: 0o755 });
    mkdirSync(join(folder, `${place}.work`));
  }
  write(join(folder, 'etc'), view.etc, 0o644);
  write(join(folder, 'bin'), view.bin, 0o755);
  write(UNITS, STUBS, 0o644);
  const systemd = await boot({
    folder,
    words: ['sh', SCRIPT, folder, CHECKOUT],
    isUp: ({ systemctl }) => systemctl('is-active', 'stand.target').trim() === 'active',
  });
  return {
    ...systemd,
    put: (files) => {
      write(UNITS, files, 0o644);
      systemd.systemctl('daemon-reload');
    },
  };
}

/** systemd as it was booted, whatever it has of units. */
export type Booted = Omit<Systemd, 'put'>;

/**
 * Runs a command that becomes systemd as PID 1 of namespaces of its own, in a control group made for it, and waits until it
 * is up. `folder` is the caller's, on a tmpfs, and is removed at the end; systemd's console is the file `console` there.
 */
export async function boot(of: {
  readonly folder: string;
  readonly words: readonly string[];
  /** What the command becomes, in words, where it is not systemd. */
  readonly what?: string;
  /** Whether what is run there has its root, too. */
  readonly ownRoot?: boolean;
  /** What whoever types there has beside a path and a home. */
  readonly env?: Readonly<Record<string, string>>;
  /** How long a script may take: the test's own limit does not count while it waits for one. */
  readonly limitSeconds?: number;
  readonly isUp: (systemd: Pick<Systemd, 'run' | 'systemctl'>) => boolean;
}): Promise<Booted> {
  const {
    folder,
    words,
    what = 'systemd',
    ownRoot = false,
    env = {},
    limitSeconds = 180,
    isUp,
  } = of;
  const cgroup = makeControlGroup(join(folder, 'cgroup'));
  const [program, args] = dyingWithParent(['sh', '-c', JOIN, 'sh', cgroup, ...words]);
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
  const said = (): string =>
    `${output}${existsSync(join(folder, 'console')) ? readFileSync(join(folder, 'console'), 'utf8') : ''}`;
  const run: Systemd['run'] = (...command) => {
    const target = [
      '--target',
      String(childOf(child)),
      '--mount',
      '--pid',
      '--cgroup',
      '--uts',
      '--ipc',
      ...(ownRoot ? ['--root', '--wd'] : []),
    ];
    return spawnSync(requireTool('nsenter'), [...target, '--', ...command], { encoding: 'utf8' });
  };
  const variables = Object.entries({ PATH: SYSTEM_PATH, HOME: '/root', ...env });
  const runTyped: Systemd['run'] = (...command) =>
    run('env', '-i', ...variables.map(([name, value]) => `${name}=${value}`), ...command);
  const shell: Systemd['shell'] = (script) => {
    const limit = ['timeout', String(limitSeconds)];
    const { stdout, stderr, status } = runTyped(...limit, 'sh', '-euc', script);
    if (status === 0) return stdout;
    throw new Error(`${script}\nended with ${status}:\n${stdout}${stderr}`);
  };
  const systemctl: Systemd['systemctl'] = (...command) => {
    const { stdout, stderr, status } = run('systemctl', ...command);
    if (status === 0) return stdout;
    throw new Error(`systemctl ${command.join(' ')}: ${status}\n${stdout}${stderr}${said()}`);
  };
  try {
    await until(`${what} is up`, () => {
      if (child.exitCode !== null) throw new Error(`${what} ended: ${said()}`);
      return isUp({ run, systemctl });
    });
  } catch (cause) {
    throw new Error(`${what} does not run here: ${said()}`, { cause });
  }
  return {
    run,
    runTyped,
    shell,
    systemctl,
    show: (unit, property) => systemctl('show', '--value', `--property=${property}`, unit).trim(),
    async [Symbol.asyncDispose]() {
      const exited = once(child, 'exit');
      child.kill('SIGKILL');
      await exited;
      await until('its processes are gone', () => removeControlGroup(cgroup));
      execFileSync(requireTool('umount'), [join(folder, 'cgroup')]);
      rmSync(folder, { recursive: true });
    },
  };
}

const SYSTEM_PATH = '/usr/sbin:/usr/bin:/sbin:/bin';

// Into its control group first, so that this is the root of its view of them.
const JOIN = 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"';

/** What units want of a whole system. */
const STUBS = {
  'stand.target': '[Unit]\nDefaultDependencies=no\n',
  'sysinit.target': '[Unit]\nDefaultDependencies=no\n',
  'basic.target': '[Unit]\nDefaultDependencies=no\n',
  'shutdown.target': '[Unit]\nDefaultDependencies=no\n',
  'network-pre.target': '[Unit]\nDefaultDependencies=no\n',
  'modprobe@.service': '[Service]\nType=oneshot\nExecStart=/bin/true\n',
};

function write(folder: string, files: Readonly<Record<string, string>>, mode: number): void {
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, name)), { recursive: true, mode: 0o755 });
    writeFileSync(join(folder, name), text, { mode });
  }
}

/** A control group of version 2 below that of this process; the sandbox's /sys shows none. */
function makeControlGroup(view: string): string {
  mkdirSync(view);
  execFileSync(requireTool('mount'), ['-t', 'cgroup2', 'cgroup2', view]);
  const own = /^0::(.*)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8'))?.[1] ?? '/';
  const group = join(view, own, `volt-test-${process.pid}`);
  mkdirSync(group);
  return group;
}

/** True when it is gone; false while a process is in it. */
function removeControlGroup(group: string): boolean {
  try {
    for (const { name } of readdirSync(group, { withFileTypes: true }).filter((one) =>
      one.isDirectory(),
    ))
      if (!removeControlGroup(join(group, name))) return false;
    rmdirSync(group);
    return true;
  } catch {
    return false;
  }
}

/** PID 1, as this process namespace numbers it. */
function childOf({ pid }: ChildProcess): number {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
  return Number(children);
}
