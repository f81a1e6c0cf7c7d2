import { execFile, execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { until } from '../support/agent.ts';
import { type Debian, startDebian } from '../support/debian.ts';
import { ip } from '../support/kernel.ts';
import { openPage } from '../support/page.ts';
import { dyingWithParent, requireTool } from '../support/tools.ts';

// The Debian package in a fresh Debian 12 without Node, under its systemd, with Debian's NATS and Redis: the commands of
// docs/install.md, as they stand there and in the order of the page, with looks at the host between them.

const PACKAGES = fileURLToPath(new URL('../../.cache/deb/test', import.meta.url));
const UNIT = 'volt-network-agent';
const ATTACHMENTS = 100;

const page = openPage('install.md');

/**
 * What lintian says of a package, nothing if it finds neither errors nor warnings. zstd, which Debian's archive does not
 * take, is for the test alone.
 */
const lintian = (folder: string): Promise<string> =>
  new Promise((resolve) => {
    const [file = ''] = readdirSync(join(PACKAGES, folder));
    const options = ['--fail-on', 'error,warning', '--suppress-tags', 'malformed-deb-archive'];
    const [program, args] = dyingWithParent([requireTool('lintian'), ...options]);
    execFile(program, [...args, join(PACKAGES, folder, file)], (error, stdout, stderr) => {
      resolve(error === null ? '' : `${error.message}\n${stdout}${stderr}`);
    });
  });
/** Begun before the other tests, since it takes long. */
const faults = [lintian('old'), lintian('other')] as const;

let debian: Debian;
beforeAll(async () => {
  debian = await startDebian(PACKAGES);
});
afterAll(() => debian[Symbol.asyncDispose]());

/** Types commands of the page; packages are those of `folder`. */
const type = (chapter: string, index = 0, folder = '/root'): string =>
  debian.shell(`cd ${folder}; ${page.commandsOf(chapter, index)}`);

const statusOf = (command: string): number | null => debian.run('sh', '-c', command).status;

const ready = (): Promise<void> =>
  until('the agent serves', () => statusOf('voltnet status') === 0, 60_000);

const pid = (): string => debian.show(UNIT, 'MainPID');
const version = (): string => debian.shell("dpkg-query -Wf '${Version}' volt-network");
const devices = (): string[] =>
  ip('link')
    .map(({ ifname }) => String(ifname))
    .toSorted();
const attached = (): string[] => {
  const { attachments } = JSON.parse(debian.shell('voltnet list --json')) as {
    attachments: { id: string }[];
  };
  return attachments.map(({ id }) => id).toSorted();
};

const numbers = Array.from({ length: ATTACHMENTS }, (_, n) => n + 1);
const ids = numbers.map((n) => `c${n}`).toSorted();

/**
 * Each container asks its gateway five times a second, until `stop`, which waits for some answers more; it returns what those
 * said of whom an answer is missing.
 */
function startPings(): () => Promise<string[]> {
  debian.shell(`rm -rf /run/pings; mkdir /run/pings
    for n in $(seq ${ATTACHMENTS}); do
      ip netns exec c$n ping -n -i 0.2 10.42.0.1 </dev/null >/run/pings/c$n 2>&1 &
      echo $! >>/run/pings/pids
    done`);
  const said = (): string[] => ids.map((id) => debian.run('cat', `/run/pings/${id}`).stdout);
  const last = (text: string): number => Number([...text.matchAll(ANSWER)].at(-1)?.[1] ?? 0);
  return async () => {
    const before = said().map(last);
    await until('pings go on', () => said().every((text, n) => last(text) > (before[n] ?? 0) + 5));
    debian.shell('kill -INT $(cat /run/pings/pids)');
    return said().filter((text) => {
      const answers = [...text.matchAll(ANSWER)].map(([, seq]) => Number(seq));
      return answers.some((seq, n) => seq !== n + 1);
    });
  };
}

const ANSWER = /bytes from .* icmp_seq=(\d+) /g;

describe('install', () => {
  test('the agent runs, and needs no Node of the host', () => {
    expect(statusOf('command -v node')).not.toBe(0);
    type('Install', 0, '/mnt/old');
    expect(debian.systemctl('is-active', UNIT).trim()).toBe('active');
    expect(debian.systemctl('is-enabled', UNIT).trim()).toBe('enabled');
    expect(statusOf('getent group volt')).toBe(0);
    const node = debian.shell(`readlink /proc/${pid()}/exe`);
    expect(node).toMatch(/^\/usr\/lib\/volt-network\/node_modules\/node-linux-\w+\/bin\/node\n$/);
  });

  test('the configuration is checked and used', () => {
    const before = pid();
    expect(JSON.parse(type('Install', 1))).toMatchObject({ host: 'volt-test' });
    expect(pid()).not.toBe(before);
  });

  test('with NATS and Redis a container is attached and has an answer from its gateway', async () => {
    type('Quick start', 0);
    expect(type('Quick start', 1)).toMatch(/ 0% packet loss[\s\S]*10\.42\.0\.20/);
    expect(ip('link', 'show', 'veth-db-h')).toHaveLength(1);
    type('Quick start', 2);
    await until('the device is gone', () => !devices().includes('veth-db-h'));
  });

  test('a guest that asks has its address by DHCP', async () => {
    // It ends with an error where nobody answers.
    type('Quick start', 3);
    const unit = 'volt-network-dnsmasq@guests0.service';
    await until('dnsmasq has ended', () => debian.show(unit, 'ActiveState') === 'inactive');
  });
});

describe(`with ${ATTACHMENTS} attachments`, () => {
  beforeAll(() => {
    debian.shell(`for n in $(seq ${ATTACHMENTS}); do
      ip netns add c$n
      voltnet attach --id c$n --workload container-c$n --kind container --network volt0 --netns /run/netns/c$n
    done
    sed -i 's/^{/{ "logLevel": "warn",/' /etc/volt/network/agent.json`);
  });

  test.each([
    ['Upgrade', 'new'],
    ['Downgrade', 'old'],
  ])(
    '%s: another agent, no answer to a ping is lost, the configuration is kept',
    async (chapter, name) => {
      const before = { pid: pid(), version: version(), devices: devices() };
      const stop = startPings();
      type(chapter, 0, `/mnt/${name}`);
      await ready();
      expect(await stop()).toEqual([]);
      expect(pid()).not.toBe(before.pid);
      expect(version()).not.toBe(before.version);
      expect(devices()).toEqual(before.devices);
      expect(attached()).toEqual(ids);
      debian.shell('voltnet check; grep warn /etc/volt/network/agent.json');
    },
  );

  test('a ledger from a backup learns of what was attached since', async () => {
    type('Back up and restore', 0);
    debian.shell(`ip netns add late
      voltnet attach --id late --workload container-late --kind container --network volt0 --netns /run/netns/late`);
    type('Back up and restore', 1);
    await until('the lease is there again', () =>
      debian.shell('voltnet lease list --json').includes('"late"'),
    );
    expect(type('Back up and restore', 2)).toMatch(/volt-test.*live/);
    debian.shell('voltnet check; voltnet network get volt0');
    expect(
      debian.shell('redis-cli config get appendonly; ls /var/lib/redis/appendonlydir'),
    ).toMatch(/yes\nappendonly\.aof/);
    debian.shell('voltnet detach late; ip netns delete late');
  });

  test('the configuration of a host is restored from a backup', async () => {
    const before = pid();
    type('Back up and restore', 3);
    debian.shell('rm -r /etc/volt/network');
    type('Back up and restore', 4);
    await ready();
    expect(pid()).not.toBe(before);
    expect(attached()).toEqual(ids);
    expect(debian.shell('volt-network-agent --check-config')).toContain('"logLevel": "warn"');
    expect(type('Back up and restore', 5)).toContain('h7');
  });

  test('a removal leaves attachments and configuration, and a later installation goes on', async () => {
    const before = devices();
    const stop = startPings();
    expect(debian.shell('apt-get remove volt-network 2>&1')).toContain('voltnet host clean --all');
    expect(statusOf('command -v voltnet')).not.toBe(0);
    debian.shell('cd /mnt/old; apt-get install ./volt-network_*.deb');
    await ready();
    expect(await stop()).toEqual([]);
    expect(devices()).toEqual(before);
    expect(attached()).toEqual(ids);
    debian.shell('voltnet check; grep warn /etc/volt/network/agent.json');
  });
});

/** What there is by a name of ours; streams are NATS's, and backups the operator's. */
const traces = (): string[] =>
  debian
    .shell(
      "find / -xdev -iname '*volt*' -not -path '/proc/*' -not -path '/mnt/*' -not -path '/var/lib/nats/*' -not -path '/var/backups/*'; find /run /dev -iname '*volt*'",
    )
    .split('\n')
    .filter((line) => line !== '');

describe('uninstall', () => {
  test('cleaning takes every device and rule away', () => {
    type('Uninstall', 0);
    expect(devices()).toEqual(['lo']);
    expect(execFileSync(requireTool('nft'), ['list', 'ruleset'], { encoding: 'utf8' })).toBe('');
  });

  test('a removal leaves the configuration, a purge leaves nothing', () => {
    const [remove = '', purge = ''] = page.commandsOf('Uninstall', 1).trim().split('\n');
    debian.shell(remove);
    expect(statusOf('test -e /etc/volt/network/agent.json')).toBe(0);
    debian.shell(purge);
    expect(traces()).toEqual([]);
    expect(statusOf('getent group volt')).not.toBe(0);
    expect(debian.shell('dpkg --list')).not.toContain('volt');
  });

  test('where systemd does not run, the package is installed and purged just so', () => {
    const inChroot = (script: string): void => {
      debian.shell(`unshare --mount sh -euc 'mount -t tmpfs tmpfs /run; ${script}'`);
    };
    inChroot('cd /mnt/new; apt-get install ./volt-network_*.deb; voltnet --version');
    expect(debian.shell('systemctl is-enabled volt-network-agent')).toBe('enabled\n');
    inChroot('apt-get purge volt-network');
    expect(traces()).toEqual([]);
  });

  test('an agent that is masked is not started, and one that is disabled stays so', () => {
    debian.shell(`systemctl mask ${UNIT}
      cd /mnt/old; apt-get install ./volt-network_*.deb`);
    expect(statusOf(`systemctl is-active ${UNIT}`)).not.toBe(0);
    debian.shell(`systemctl unmask ${UNIT}; systemctl enable --now ${UNIT}
      apt-get purge volt-network
      cd /mnt/old; apt-get install ./volt-network_*.deb
      systemctl disable --now ${UNIT}
      cd /mnt/new; apt-get install ./volt-network_*.deb`);
    expect(statusOf(`systemctl is-active ${UNIT}`)).not.toBe(0);
    expect(debian.run('systemctl', 'is-enabled', UNIT).stdout).toBe('disabled\n');
    debian.shell('apt-get purge volt-network');
    expect(traces()).toEqual([]);
  });

  test('a host id is given before the first start', () => {
    type('Install', 2, '/mnt/old');
    expect(debian.systemctl('is-active', UNIT).trim()).toBe('active');
    expect(debian.systemctl('is-enabled', UNIT).trim()).toBe('enabled');
    expect(debian.shell('cat /run/volt-vmm/network/host')).toBe('h7\n');
    debian.shell('apt-get purge volt-network');
    expect(traces()).toEqual([]);
  });

  test('every command of the page was typed', () => {
    expect(page.untyped()).toEqual([]);
  });
});

test.each([
  ['this machine type', 0],
  ['the other', 1],
] as const)('lintian finds nothing wrong with the package for %s', async (_type, which) => {
  expect(await faults[which]).toBe('');
});
