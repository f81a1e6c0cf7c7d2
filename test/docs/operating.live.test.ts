import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { until } from '../support/agent.ts';
import { ip, only } from '../support/kernel.ts';
import { type OperatedHost, startOperatedHost } from '../support/operated-host.ts';
import { linesOf, openPage } from '../support/page.ts';
import { startNatsCluster } from '../support/servers.ts';

// The commands of docs/operating.md, as they stand there, on a host with systemd, the journal, networkd and udevd.

const UNIT = 'volt-network-agent';
const ENVIRONMENT = '/etc/volt/network/environment';
const ADDRESSES = '/etc/systemd/system/volt-network-agent.service.d/addresses.conf';
const page = openPage('operating.md');

let host: OperatedHost;
beforeAll(async () => {
  host = await startOperatedHost({
    config: { heartbeatSeconds: 0.5, suspectAfterSeconds: 2 },
    bin: {
      // There is one machine: what would be typed on the other one is typed here.
      ssh: '#!/bin/sh\nwhile [ "$1" != h1 ]; do shift; done; shift; exec "$@"\n',
    },
    before: async (shell) => {
      shell('hostname h1');
      // A host that was there once: the page forgets it.
      shell(`mkdir -p /run/h7 /var/lib/h7
        cd /opt/volt-network
        deploy/bin/volt-network-agent --host h7 --runtime-dir /run/h7 --state-dir /var/lib/h7 >/run/h7.log 2>&1 &
        until VOLT_NET_RUNTIME_DIR=/run/h7 deploy/bin/voltnet status >/dev/null; do sleep 0.1; done
        kill $!`);
    },
  });
  await host.ready();
});
afterAll(() => host[Symbol.asyncDispose]());

const type = (chapter: string, index = 0): string => host.shell(page.commandsOf(chapter, index));

describe('under systemd', () => {
  test('the unit is installed, with the drop-in, and starts with the host', () => {
    expect(page.commandsOf('Under systemd')).toContain('own-mounts.conf');
    expect(host.systemd.show(UNIT, 'ActiveState')).toBe('active');
    expect(host.systemd.show(UNIT, 'UnitFileState')).toBe('enabled');
    expect(host.systemd.show(UNIT, 'ProtectSystem')).toBe('strict');
  });

  test('the drop-in with addresses leaves it its servers', async () => {
    host.systemd.put({});
    host.shell(`cat >${ADDRESSES} <<'END'\n${page.fileOf(ADDRESSES)}END
      systemctl daemon-reload
      systemctl restart ${UNIT}`);
    await host.ready();
    expect(host.systemd.show(UNIT, 'IPAddressAllow')).toContain('10.0.0.0/28');
  });

  test('networkd makes the bridge', async () => {
    type('Under systemd', 1);
    await until('the bridge has its address', () =>
      only(ip('address', 'show', 'volt0')).addr_info.some(({ local }) => local === '10.42.0.1'),
    );
  });
});

describe('health and metrics', () => {
  test('status says how things stand', () => {
    expect(type('Health')).toMatch(/nats\s+.*connected/);
  });

  test('metrics are there once the environment has their address', async () => {
    host.shell(`cat >${ENVIRONMENT} <<'END'\n${page.fileOf(ENVIRONMENT)}END
      systemctl restart ${UNIT}`);
    await host.ready();
    type('Metrics');
    expect(host.shell('curl -s http://127.0.0.1:9464/metrics')).toContain(
      'volt_network_build_info',
    );
  });

  test.each(linesOf(page.commandsOf('The dashboard')))('%s', (line) => {
    const { status, said } = host.type(line, { until: 'http://127.0.0.1:8180/' });
    expect(status, said).toBe(0);
  });
});

describe('NATS and Redis', () => {
  test('the streams of a cluster are on three servers', async () => {
    const cluster = await startNatsCluster();
    const url = cluster.map((server) => server.url).join();
    const setup = `VOLT_NET_NATS_URL=${url} ${page.commandsOf('NATS')}`;
    await until('the cluster has a leader', () => host.type(setup).status === 0);
    expect(host.shell(setup)).toMatch(/VOLT_NET_JOBS/);
    for (const server of cluster) await server.stop();
  });

  test("the library is loaded by an administrator's user", () => {
    const [, rights = ''] =
      /ACL SETUSER volt-admin on >… (.*)/.exec(openPage('ledger.md').text) ?? [];
    host.shell(`echo secret >/etc/volt/redis-admin.password
      redis-cli ACL SETUSER volt-admin on '>secret' ${rights.replaceAll('|', '\\|')}`);
    expect(type('Redis')).toMatch(/\d+\.\d+/);
  });
});

describe('when something is away, or in the way', () => {
  test('without NATS the agent is asked over its socket', () => {
    host.shell(`voltnet network put /opt/volt-network/deploy/networks/volt0.json
      voltnet attach --id web --workload vm-web --kind vm --network volt0`);
    expect(type('When something is away')).toContain('web');
    expect(host.type('voltnet --local get web').status).toBe(4);
  });

  test('doctor prints what the page shows', () => {
    host.shell(`voltnet network put /dev/stdin <<'END'
      { "network": "ho0", "type": "host-only", "subnet": "10.43.0.0/24", "gateway": "10.43.0.1" }
END
      voltnet attach --id inner --workload vm-inner --kind vm --network ho0
      nft 'table ip filter { chain DOCKER-USER { return; }; chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }; }'`);
    const { said } = host.type('voltnet doctor');
    host.shell('nft delete table ip filter; voltnet detach inner');
    expect(said).toContain(page.shown('problem:'));
  });
});

describe("the fleet's ledger", () => {
  /** Commands that do not end well here, and why. */
  const ENDS: Readonly<Record<string, number>> = {
    // h7 does not answer.
    'voltnet ledger check': 8,
  };

  test.each(linesOf(page.commandsOf("The fleet's ledger", 0)))('%s', (line) => {
    const command = line.replace(/\s+#.*/, '');
    if (command.includes('rename')) host.shell(`systemctl stop ${UNIT}`);
    const { status, said } = host.type(line);
    expect(status, said).toBe(ENDS[command] ?? 0);
  });

  test('a host has its other id, and has it again after the commands of the page', async () => {
    host.shell('voltnet host rename h1');
    type("The fleet's ledger", 3);
    await host.ready();
    expect(host.shell('voltnet host list')).toContain('h7b');
  });

  test('of two copies one is settled as the host, and the other becomes another machine', async () => {
    host.shell(`cp -r /var/lib/volt/network /var/lib/copy
      mkdir /run/copy
      cat /proc/sys/kernel/random/uuid >/run/copy.boot
      echo '{ "heartbeatSeconds": 0.5, "suspectAfterSeconds": 2, "nftablesTable": "copy" }' >/run/copy.json
      unshare --mount sh -c 'mount --bind /run/copy.boot /proc/sys/kernel/random/boot_id
        exec volt-network-agent --config /run/copy.json --runtime-dir /run/copy --state-dir /var/lib/copy' \\
        >/run/copy.log 2>&1 & echo $! >/run/copy.pid`);
    await until('both are refused', () =>
      host.type('voltnet host list').said.includes('claimed by 2'),
    );
    host.shell('kill $(cat /run/copy.pid)');
    type("The fleet's ledger", 2);
    await host.ready();
    // There is one machine: it is the other one now.
    const before = host.shell('cat /etc/machine-id');
    type("The fleet's ledger", 1);
    expect(host.shell('cat /etc/machine-id')).not.toBe(before);
    host.shell(`sed -i 's/^{/{ "host": "h2",/' /etc/volt/network/agent.json
      systemctl start ${UNIT}`);
    await host.ready();
    expect(host.shell('voltnet host list')).toMatch(/^h2 /m);
  });
});

test('every command of the page was typed', () => {
  expect(page.untyped()).toEqual([]);
});
