import type { Command } from 'commander';
import { VoltError } from '#protocol/errors.ts';
import type { EventType } from '#protocol/events.ts';
import type { Connected } from '../connect.ts';
import type { Shell } from '../shell.ts';
import { collect, timeOf, wholeNumber } from '../units.ts';
import { UsageError } from '../errors.ts';
import { eventLine } from '../event-line.ts';

interface WatchFlags {
  readonly network?: string;
  readonly type?: readonly string[];
  readonly count?: string;
  readonly since?: string;
}

/** `watch`: events of the fleet as they come. */
export function addWatchCommand(program: Command, shell: Shell): void {
  program
    .command('watch')
    .description('show events as they come, of all hosts or of the one that --host names')
    .option('--network <name>', 'only of this network')
    .option('--type <type>', 'only of this type; may be repeated', collect)
    .option('--since <time>', 'first those of before: 15m, 2h, or a time as 2026-01-31T08:00:00Z')
    .option('--count <number>', 'end after so many events')
    .addHelpText('after', EXAMPLES)
    .action(async (flags: WatchFlags) => {
      const count = wholeNumber('--count', flags.count) ?? Number.POSITIVE_INFINITY;
      const { EVENT_TYPES } = await import('#protocol/events.ts');
      const types = flags.type?.map((type) => eventType(type, EVENT_TYPES));
      const output = shell.output();
      const watch = async ({ client, settings, flush }: Connected): Promise<void> => {
        const events = client.watch({
          ...(settings.hostGiven && { host: settings.host }),
          ...(flags.network !== undefined && { network: flags.network }),
          ...(types !== undefined && { types }),
          ...(flags.since !== undefined && { since: timeOf(flags.since) }),
        });
        // The first call subscribes. After "watching" every event from then on is shown.
        let next = events.next();
        await flush();
        output.note('watching; press Ctrl-C to end');
        for (let seen = 0; seen < count; seen += 1) {
          const { done, value } = await next;
          if (done === true) throw new VoltError('AGENT_UNAVAILABLE', 'the connection was closed');
          output.line(value, () => eventLine(value));
          next = events.next();
        }
      };
      await shell.withClient(watch, { stay: true });
    });
}

function eventType(text: string, types: readonly EventType[]): EventType {
  const known = types.find((type) => type === text);
  if (known !== undefined) return known;
  throw new UsageError(`--type "${text}": must be one of ${types.join(', ')}`);
}

const EXAMPLES = `
Examples:
  $ voltnet watch
  $ voltnet watch --host h1 --network volt0 --type attached --type detached
  $ voltnet watch --json | jq -r 'select(.type == "failed") | .body.error.message'

  Wait for the next detach
  $ voltnet watch --type detached --count 1

  What has failed during the last hour, and what fails from now on
  $ voltnet watch --since 1h --type failed

Shown is what happens from now on; with --since also what the stream VOLT_NET_EVENTS has of before.`;
