import type { Command } from 'commander';
import { EVENT_TYPES, type EventType } from '#protocol/events.ts';
import type { Shell } from '../shell.ts';
import { wholeNumber } from '../units.ts';
import { UsageError } from '../errors.ts';
import { eventLine } from '../event-line.ts';

interface WatchFlags {
  readonly network?: string;
  readonly type?: readonly string[];
  readonly count?: string;
}

/** `watch`: events of the fleet as they come. */
export function addWatchCommand(program: Command, shell: Shell): void {
  program
    .command('watch')
    .description('show events as they come, of all hosts or of the one that --host names')
    .option('--network <name>', 'only of this network')
    .option('--type <type>', 'only of this type; may be repeated', collect)
    .option('--count <number>', 'end after so many events')
    .addHelpText('after', EXAMPLES)
    .action(async (flags: WatchFlags, command: Command) => {
      const count = wholeNumber('--count', flags.count) ?? Number.POSITIVE_INFINITY;
      const types = flags.type?.map(eventType);
      const output = shell.output(command);
      await shell.withClient(command, async (client, { host, hostGiven }) => {
        const events = client.watch({
          ...(hostGiven && { host }),
          ...(flags.network !== undefined && { network: flags.network }),
          ...(types !== undefined && { types }),
        });
        output.note('watching; press Ctrl-C to end');
        let seen = 0;
        for await (const event of events) {
          output.line(event, (style) => eventLine(event, style));
          seen += 1;
          if (seen >= count) break;
        }
      });
    });
}

const collect = (value: string, previous: readonly string[] = []): string[] => [...previous, value];

function eventType(text: string): EventType {
  const known = EVENT_TYPES.find((type) => type === text);
  if (known !== undefined) return known;
  throw new UsageError(`--type "${text}": must be one of ${EVENT_TYPES.join(', ')}`);
}

const EXAMPLES = `
Examples:
  $ voltnet watch
  $ voltnet watch --host h1 --network volt0 --type attached --type detached
  $ voltnet watch --json | jq -r 'select(.type == "failed") | .body.error.message'

  Wait for the next detach
  $ voltnet watch --type detached --count 1

Shown is what happens from now on; the stream VOLT_NET_EVENTS keeps what happened before.`;
