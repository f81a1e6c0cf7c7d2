import { afterAll, beforeAll, expect, test } from 'vitest';
import { until } from '../support/agent.ts';
import { type OperatedHost, startOperatedHost } from '../support/operated-host.ts';
import { linesOf, openPage } from '../support/page.ts';

// The commands of docs/runbook.md, as they stand there, on a host that has what the alerts speak of.

const page = openPage('runbook.md');
const ATTACH = 'voltnet attach --kind vm --network volt0';
/** The address is the gateway's. */
const REFUSED = `${ATTACH} --id x --workload vm-x --address 10.42.0.1`;

let host: OperatedHost;
beforeAll(async () => {
  host = await startOperatedHost({
    config: {
      host: 'h1',
      heartbeatSeconds: 0.5,
      suspectAfterSeconds: 2,
      reconcileSeconds: 1,
      metrics: { listen: '127.0.0.1:9464' },
    },
  });
  await host.ready();
  host.shell(`voltnet network put /opt/volt-network/deploy/networks/volt0.json
    ${ATTACH} --id web --workload vm-web`);
});
afterAll(() => host[Symbol.asyncDispose]());

/** What does not end by itself, and what it has to say before the test ends it. */
const ENDLESS: Readonly<Record<string, string>> = {
  'redis-cli --latency-history -i 5': '[0-9]',
  'ip monitor link': 'tap-web',
  'nft monitor': 'add table',
};

/** Done beside a command, so that there is something to see. */
const MEANWHILE: Readonly<Record<string, string>> = {
  'voltnet watch --type failed --count 5': REFUSED,
  'voltnet watch --type repaired --count 5': 'ip link set tap-web down',
  'ip monitor link': 'ip link set tap-web down',
  'nft monitor': 'nft add table ip other; nft delete table ip other',
};

const logged = (words: string): Promise<void> =>
  until(`the log says ${words}`, () =>
    host.type('journalctl -u volt-network-agent -o cat').said.includes(words),
  );

/** Made true before a command that looks for it. */
const BEFORE: readonly (readonly [part: string, make: () => Promise<void> | void])[] = [
  ['"msg":"refused"', () => void host.type(REFUSED)],
  [
    'not repaired yet',
    async () => {
      host.shell('ip link set tap-web name other; ip link add tap-web type bridge');
      await logged('not repaired yet');
      host.shell('ip link delete tap-web');
    },
  ],
  [
    'not finished yet',
    async () => {
      const [, redis] = host.servers;
      redis?.pause();
      host.type('voltnet detach web');
      await logged('not finished yet');
      redis?.resume();
    },
  ],
];

/** What finds nothing on a host on which nothing unexpected has happened. */
const SILENT = ['grep OpenTelemetry', 'out of memory|oom', 'please report it', 'apt-cache policy'];

const commands = page.text
  .split('\n## ')
  .slice(1)
  .flatMap((chapter) => {
    const title = chapter.slice(0, chapter.indexOf('\n'));
    const blocks = [...chapter.matchAll(/^```sh\n/gm)];
    return blocks.flatMap((_, index) =>
      linesOf(page.commandsOf(title, index)).map((line) => [title, line] as const),
    );
  });

test.each(commands)('%s: %s', async (_title, line) => {
  const command = line.replace(/ +#.*/, '');
  const [, make] = BEFORE.find(([part]) => line.includes(part)) ?? [];
  await make?.();
  const words = ENDLESS[command];
  const meanwhile = MEANWHILE[command];
  const { status, said } = host.type(line, {
    ...(words !== undefined && { until: words }),
    ...(meanwhile !== undefined && { meanwhile }),
  });
  if (SILENT.some((part) => line.includes(part))) expect(status).toBeLessThanOrEqual(1);
  else {
    expect(status, said).toBe(0);
    expect(said).not.toBe('');
  }
});

test('every command of the page was typed', () => {
  expect(page.untyped()).toEqual([]);
});
