import { afterAll, beforeAll, expect, test } from 'vitest';
import { type OperatedHost, startOperatedHost } from '../support/operated-host.ts';
import { linesOf, openPage } from '../support/page.ts';

// The commands of docs/networks.md, as they stand there, with the network of their chapter.

const page = openPage('networks.md');

let host: OperatedHost;
beforeAll(async () => {
  host = await startOperatedHost({ config: { host: 'h1' } });
  await host.ready();
  const [, network = ''] = /```json\n(\{\n {2}"network": "lan0"[^`]*)```/.exec(page.text) ?? [];
  // eth1 of the page, and the wire that it is on; 10.60.0.5 is the host's.
  host.shell(`ip link add eth1 type veth peer name wire
    ip address add 10.60.0.5/24 dev eth1
    ip link set eth1 up; ip link set wire up
    echo '${network}' | voltnet network put /dev/stdin
    ip netns add box
    voltnet attach --id box --workload container-box --kind container --network lan0 --netns /run/netns/box --address 10.60.0.100
    voltnet attach --id lan --workload vm-lan --kind vm --network lan0`);
});
afterAll(() => host[Symbol.asyncDispose]());

test('with a macvlan of its own the host reaches a workload on its parent', () => {
  const ping = 'ping -c 1 -W 1 10.60.0.100';
  expect(host.type(ping).status).not.toBe(0);
  host.shell(page.commandsOf('macvtap', 0));
  host.shell(`until ${ping}; do sleep 0.1; done`);
});

test('a VMM has the macvtap by descriptor', () => {
  const { status, said } = host.type(page.commandsOf('macvtap', 1), { until: 'SeaBIOS' });
  expect(status, said).toBe(0);
});

test.each(linesOf(page.commandsOf('The port filter')))('%s', (line) => {
  expect(host.shell(line)).toMatch(/^table \w+ volt \{/);
});

test('every command of the page was typed', () => {
  expect(page.untyped()).toEqual([]);
});
