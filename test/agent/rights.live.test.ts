import { spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { AGENT } from '../support/agent.ts';

test('without CAP_NET_ADMIN the agent says so and ends, and makes nothing', () => {
  const command = ['--bounding-set', '-net_admin', '--inh-caps', '-net_admin', AGENT];
  const { status, stderr, stdout } = spawnSync('setpriv', command, {
    encoding: 'utf8',
    timeout: 30_000,
    env: { ...process.env, VOLT_NET_RUNTIME_DIR: '/run/rights-test' },
  });
  expect({ status, stdout }).toEqual({ status: 78, stdout: '' });
  expect(stderr).toMatch(/^volt-network-agent: needs CAP_NET_ADMIN: start it as root.*\n$/);
});
