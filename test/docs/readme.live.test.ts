import { afterAll, beforeAll, expect, test } from 'vitest';
import { until } from '../support/agent.ts';
import { type OperatedHost, startOperatedHost } from '../support/operated-host.ts';
import { linesOf, openPage } from '../support/page.ts';

// The commands of README.md and of docs/examples/README.md, as they stand there, in a checkout.

const page = openPage('/README.md');
const examples = openPage('examples/README.md');
const IN_CHECKOUT = `export PATH=${process.env['PATH']}; cd /opt/volt-network; `;

let host: OperatedHost;
beforeAll(async () => {
  host = await startOperatedHost({ config: {} });
  // The page starts its own.
  host.shell('systemctl stop volt-network-agent; hostname h1; rm -r /var/lib/volt/network/*');
});
afterAll(() => host[Symbol.asyncDispose]());

test.each(linesOf(page.commandsOf('Try it')))('%s', (line) => {
  const { status, said } = host.type(IN_CHECKOUT + line);
  expect(status, said).toBe(0);
});

test('the agent is started', async () => {
  const [start = ''] = linesOf(page.commandsOf('Use it', 0));
  host.shell(`${IN_CHECKOUT} ${start} >/run/agent.log 2>&1 &`);
  await until('it serves', () => host.type('voltnet status').status === 0);
});

test.each(linesOf(page.commandsOf('Use it', 1)))('%s', (line) => {
  // QEMU has nothing to start, and says so to whoever waits.
  const { status, said } = host.type(
    IN_CHECKOUT + line,
    line.includes('qemu') ? { until: 'SeaBIOS' } : {},
  );
  expect(status, said).toBe(0);
});

test('the orchestrator of the examples attaches and detaches', () => {
  host.shell('voltnet network delete volt0; ip netns add box');
  const said = host.shell(IN_CHECKOUT + examples.commandsOf(examples.text.split('\n', 1)[0] ?? ''));
  expect(said).toMatch(/attached/);
  host.shell('ip netns delete box');
});

test('every command of the pages was typed', () => {
  expect([...page.untyped(), ...examples.untyped()]).toEqual([]);
});
