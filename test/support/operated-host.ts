import { mkdirSync, symlinkSync } from 'node:fs';
import { until } from './agent.ts';
import { openPage } from './page.ts';
import { type Server, startNats, startRedis } from './servers.ts';
import { INSTALLED, startSystemd, type Systemd } from './systemd.ts';

// Of Debian's systemd, beside PID 1. udevd has no rules: it is there to be told to read its files again, and looks after no
// device of this machine.
const UNITS = '/run/systemd/system';
const DEBIANS = [
  ...['systemd-journald.service', 'systemd-journald.socket', 'systemd-journald-dev-log.socket'],
  ...['dbus.service', 'dbus.socket', 'systemd-networkd.service', 'systemd-networkd.socket'],
  ...['sockets.target', 'multi-user.target', 'network.target'],
];
const UDEVADM = `${INSTALLED}/.cache/udev/bin/udevadm`;
const UDEVD = `[Service]\nType=notify\nExecStart=@${UDEVADM} systemd-udevd\n`;

export interface Ended {
  readonly status: number | null;
  readonly said: string;
}

/** A host with the agent as docs/operating.md installs it, on which pages are typed as root. */
export interface OperatedHost extends AsyncDisposable {
  readonly systemd: Systemd;
  /** NATS and Redis, where it has them. */
  readonly servers: readonly Server[];
  /** Runs a script, which has to succeed, and returns what it says. */
  readonly shell: (script: string) => string;
  /**
   * Runs one command to its end; with `until` to when it has said that, for it would not end by itself. `meanwhile` is done
   * again and again beside it.
   */
  readonly type: (command: string, how?: { until?: string; meanwhile?: string }) => Ended;
  /** Until the agent serves. */
  readonly ready: () => Promise<void>;
}

// $1: the command, $2: what it has to say, $3: what is done meanwhile. The command has a group of processes of its own.
const TYPE = `
said=$(mktemp)
if [ -n "$3" ]; then
  (while :; do sh -c "$3" >/dev/null 2>&1; sleep 0.2; done) &
  other=$!
fi
setsid sh -c "$1" >"$said" 2>&1 &
own=$!
status=
if [ -n "$2" ]; then
  for _ in $(seq 1200); do
    grep -q -e "$2" "$said" && status=0 && break
    kill -0 $own 2>/dev/null || break
    sleep 0.1
  done
  kill -- -$own
fi
wait $own || status=\${status:-$?}
[ -z "$3" ] || kill $other
cat "$said"
rm "$said"
exit \${status:-0}
`;

/**
 * Starts systemd with a journal, networkd and udevd, and installs the agent's unit with `config` as its agent.json.
 * `before` is done when all is there but the agent; `bin` is in /usr/bin. NATS and Redis are where an agent looks for them,
 * unless `hasServers` says otherwise. Needs a test's sandbox.
 */
export async function startOperatedHost({
  config,
  bin = {},
  hasServers = true,
  debians = [],
  before = () => {},
}: {
  readonly config: object;
  readonly bin?: Readonly<Record<string, string>>;
  readonly hasServers?: boolean;
  /** Units of Debian's packages, beside those of systemd. */
  readonly debians?: readonly string[];
  readonly before?: (shell: Systemd['shell']) => Promise<void> | void;
}): Promise<OperatedHost> {
  const servers: Server[] = hasServers
    ? await Promise.all([startNats({ port: 4222 }), startRedis({ port: 6379 })])
    : [];
  mkdirSync(UNITS, { recursive: true });
  for (const name of [...DEBIANS, ...debians])
    symlinkSync(`/lib/systemd/system/${name}`, `${UNITS}/${name}`);
  const systemd = await startSystemd({
    etc: { 'volt/network/agent.json': JSON.stringify(config) },
    bin: { udevadm: `#!/bin/sh\nexec ${UDEVADM} "$@"\n`, ...bin },
  });
  systemd.put({ 'systemd-udevd.service': UDEVD });
  const { shell } = systemd;
  shell(`mkdir /run/dbus
    systemctl start systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service
    systemctl start dbus.socket systemd-udevd.service systemd-networkd.service`);
  await before(shell);
  shell(openPage('operating.md').commandsOf('Under systemd'));
  const host: OperatedHost = {
    systemd,
    shell,
    servers,
    type: (command, { until: words = '', meanwhile = '' } = {}) => {
      const typed = ['sh', '-c', TYPE, 'sh', command, words, meanwhile];
      const { status, stdout, stderr } = systemd.runTyped(...typed);
      return { status, said: stdout + stderr };
    },
    ready: () => until('the agent serves', () => host.type('voltnet status').status === 0, 60_000),
    async [Symbol.asyncDispose]() {
      await systemd[Symbol.asyncDispose]();
      for (const server of servers) await server.stop();
    },
  };
  return host;
}
