import type { Command } from 'commander';
import { EXIT } from '../exit-codes.ts';
import { details, marked, type Page } from '../page.ts';
import { isRecord } from '../settings.ts';
import type { Shell } from '../shell.ts';
import { age } from '../units.ts';
import { valueText } from '../views.ts';

/** `status`: the state of the agent of this host, asked over its local socket. */
export function addStatusCommand(program: Command, shell: Shell): void {
  program
    .command('status')
    .description('how the agent of this host stands, also while NATS or Redis is away')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet status
  $ voltnet status --json | jq -r .health.redis.state
  $ until voltnet status >/dev/null; do sleep 1; done

Exit code 0 when attaches that are asked for over NATS can be done, 8 while not, 3 without an
agent. What is wrong is listed with since when, why, and what to do about it.`,
    )
    .action(async () => {
      const { runtimeDir, timeoutMs } = shell.settingsHere();
      const { askAgent } = await import('../local-socket.ts');
      using reply = await askAgent({ runtimeDir, timeoutMs, request: { op: 'health' } });
      const { health }: { readonly health: Readonly<Record<string, unknown>> } = reply.body;
      const { conditions: found, ...rest } = health;
      const conditions = Array.isArray(found) ? found.filter(isRecord) : [];
      shell
        .output()
        .result(reply.body, () => [...details(flatten(rest)), ...conditions.flatMap(lines)]);
      if (conditions.some(({ blocks }) => blocks === true)) shell.exitCode = EXIT.differs;
    });
}

/** The lines of a condition, set apart from the lines above. */
function lines(condition: Readonly<Record<string, unknown>>): Page {
  const { name, since, reason, remedy, blocks } = condition;
  const text = `${valueText(name)} for ${age(String(since), Date.now())}`;
  return [
    '',
    [marked(blocks === true ? 'bad' : 'strong', text), `: ${valueText(reason)}`],
    [marked('faint', `  ${valueText(remedy)}`)],
  ];
}

/** A property a line; `redis: { state, reason }` is "unavailable: connection refused". */
const flatten = (health: Readonly<Record<string, unknown>>): [string, string][] =>
  Object.entries(health).map(([name, value]) => [
    name,
    isRecord(value) ? Object.values(value).flatMap(parts).join(': ') : valueText(value),
  ]);

/** The words and names in a property of a property. */
const parts = (value: unknown): string[] => {
  if (Array.isArray(value)) return value.length === 0 ? [] : [`awaiting ${value.join(', ')}`];
  return typeof value === 'string' ? [value] : [];
};
