import { afterAll, beforeAll, expect, test } from 'vitest';
import { type OperatedHost, startOperatedHost } from '../support/operated-host.ts';
import { linesOf, openPage } from '../support/page.ts';

// The chapter "Setting it up" of docs/security.md, typed as it stands on one machine that is all of those of the page, with
// Debian's NATS and Redis under systemd.

const CHAPTER = 'Setting it up';
const NO_PERMISSION = 7;
const page = openPage('security.md');
let block = 0;
const next = (): string => page.commandsOf(CHAPTER, block++);

let host: OperatedHost;
beforeAll(async () => {
  host = await startOperatedHost({
    config: { host: 'h1' },
    hasServers: false,
    debians: ['nats-server.service', 'redis-server.service'],
  });
  host.shell(`systemctl stop volt-network-agent
    echo '127.0.0.1 nats.volt.internal redis.volt.internal' >>/etc/hosts`);
});
afterAll(() => host[Symbol.asyncDispose]());

test.each(['certificates', 'keys', 'NATS', 'Redis', 'streams and functions', 'the agent'])(
  '%s, as the page has it',
  () => {
    host.shell(next());
  },
);

let as: string;
test('operator, orchestrator and observer do what is theirs', () => {
  as = next();
  expect(host.shell(as)).toMatch(/^web .*tap-web/m);
  as = as.slice(0, as.indexOf('\n}\n') + 3);
});

test('what is not theirs is refused as the page shows', () => {
  const told = linesOf(next()).map((line) => {
    const { status, said } = host.type(as + line);
    expect(status, said).toBe(NO_PERMISSION);
    return said;
  });
  expect(told.join('')).toBe(page.shown('voltnet: '));
  expect(host.shell('voltnet --local list')).toContain('tap-web');
});

test('the dashboard serves an observer', () => {
  const { status, said } = host.type(as + next(), { until: 'http://127.0.0.1:8180/' });
  expect(status, said).toBe(0);
});

test('another host has its own key and password, and its agent serves', () => {
  host.shell(next());
  host.shell(`mkdir /run/h7
    sed 's/h1/h7/g; s/^{/{ "nftablesTable": "h7",/
      s#/etc/volt/network/nats.seed#/etc/volt/keys/agent-h7.seed#
      s#/etc/volt/network/redis.password#/etc/volt/keys/volt-h7.password#' /etc/volt/network/agent.json >/etc/volt/h7.json
    volt-network-agent --config /etc/volt/h7.json --runtime-dir /run/h7 --state-dir /var/lib/h7 >/run/h7.log 2>&1 &
    until VOLT_NET_RUNTIME_DIR=/run/h7 voltnet status; do sleep 0.1; done`);
});

test.each([
  ['Redis without TLS', 'redis-cli -h redis.volt.internal ping', 'closed|reset'],
  [
    'Redis without a password',
    'redis-cli --tls --cacert /etc/volt/keys/ca.crt -h redis.volt.internal ping',
    'NOAUTH',
  ],
  ['NATS without a key', 'voltnet --config /run/none.json --host h7 list', 'refused|wrong'],
])('%s lets nobody in', (_, command, words) => {
  host.shell(
    `echo '{ "nats": { "url": "tls://nats.volt.internal:4222", "tls": { "caFile": "/etc/volt/network/ca.crt" } } }' >/run/none.json`,
  );
  expect(host.type(command).said).toMatch(new RegExp(words, 'i'));
});

test('every command of the page was typed', () => {
  expect(page.untyped()).toEqual([]);
});
