import { execFileSync } from 'node:child_process';
import { startHost } from './host.ts';
import { type Table, timed } from './figures.ts';

const VOLTNET = new URL('../../deploy/bin/voltnet', import.meta.url).pathname;
const ROUNDS = 15;

/** How long `voltnet` takes from start to end, as a whole process. */
export async function benchStart(): Promise<Table[]> {
  await using stack = await startHost();
  const env = { ...process.env, VOLT_NET_NATS_URL: stack.nats.url, VOLT_NET_HOST: stack.host };
  const commands = { '--help': ['--help'], '--version': ['--version'], list: ['list', '--json'] };
  const times = new Map<string, number[]>();
  for (let round = 0; round <= ROUNDS; round += 1) {
    for (const [name, args] of Object.entries(commands)) {
      const ms = await timed(() => execFileSync(VOLTNET, args, { env }));
      // The first round fills the compile cache.
      if (round > 0) times.set(name, [...(times.get(name) ?? []), ms]);
    }
  }
  return [
    {
      name: 'start',
      title: 'The command line',
      how: `\`voltnet\` from start to end, as a whole process, ${ROUNDS} times.`,
      decisive: [],
      shown: [...times].map(([name, values]) => ({ name: `voltnet ${name}`, unit: 'ms', values })),
    },
  ];
}
