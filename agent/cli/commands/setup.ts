import type { Command } from 'commander';
import { eventStreamOf, jobConsumer, jobStreamOf } from '#protocol/subjects.ts';
import { DEFAULT_STREAMS, STREAM_LIMITS, type StreamSettings } from '../../bus/stream-settings.ts';
import type { Ensured } from '../../bus/streams.ts';
import { UsageError } from '../errors.ts';
import { EXIT } from '../exit-codes.ts';
import { table } from '../page.ts';
import type { Shell } from '../shell.ts';

type Flags = Readonly<Partial<Record<keyof StreamSettings, string>>>;

/** `setup`: makes in JetStream, as an administrator, what agents have no right to make. */
export function addSetupCommand(program: Command, shell: Shell): void {
  program
    .command('setup')
    .description('make the streams of jobs and events, and the consumers of hosts, in JetStream')
    .argument('[hosts...]', "hosts whose consumers are made (default: this one's)")
    .option('--replicas <number>', 'servers that keep each stream: 3 in a cluster')
    .option('--storage <kind>', 'file or memory')
    .option('--event-age-seconds <seconds>', 'events are kept for so long')
    .option('--event-bytes <bytes>', 'how much of them is kept')
    .option('--job-age-seconds <seconds>', 'how long a job waits for its host')
    .option('--job-bytes <bytes>', 'how much may wait')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet setup
  $ voltnet setup h1 h2 h3
  $ voltnet setup --replicas 3 h1 h2 h3
  $ VOLT_NET_NATS_CREDENTIALS_FILE=admin.creds voltnet setup h1 h2 h3

Asks no agent, and is needed only where agents may not make these themselves, or to change streams
that are there: replicas, age and bytes are set where a flag, a variable or nats.streams of
agent.json gives them. All else of what is there is left as it is; exit code 8 when it differs from
what was asked for, is nothing that agents can use, or is refused by the server, which says why: a
server that is alone keeps no replicas.`,
    )
    .action(async (hosts: string[], flags: Flags) => {
      const made = await shell.withClient(async ({ settings, jetStream }) => {
        const { ensureEventStream, ensureJobStream } = await import('../../bus/streams.ts');
        const { ensureJobConsumer } = await import('../../bus/job-consumer.ts');
        const given = streamSettings({ ...settings.streams, ...flags });
        const named = hosts.length === 0 ? [settings.host] : hosts;
        const prefix = settings.subjectPrefix;
        const fleet = {
          prefix,
          settings: { ...DEFAULT_STREAMS, ...given },
          given: KEYS.filter((key) => given[key] !== undefined),
        };
        return jetStream(
          async (manager) => {
            const events = await ensureEventStream(manager, fleet).catch(
              refused(eventStreamOf(prefix)),
            );
            const jobs = await ensureJobStream(manager, fleet).catch(refused(jobStreamOf(prefix)));
            const ensured: Ensured[] = [events, jobs];
            // A consumer is a part of its stream.
            if (jobs.outcome === 'refused') return ensured;
            for (const host of named) {
              const making = ensureJobConsumer(manager, { prefix, host, stream: jobs.name });
              ensured.push(await making.catch(refused(jobConsumer(host, prefix))));
            }
            return ensured;
          },
          { repeated: true },
        );
      });
      shell.output().result({ made }, () =>
        table(
          ['NAME', 'OUTCOME', 'DIFFERENCES'],
          made.map(({ name, outcome, differences }) => [name, outcome, differences.join('; ')]),
        ),
      );
      if (!made.every(({ outcome }) => AS_ASKED.has(outcome))) shell.exitCode = EXIT.differs;
    });
}

const AS_ASKED: ReadonlySet<Ensured['outcome']> = new Set(['made', 'updated', 'there']);

const NUMBERS = ['replicas', 'eventAgeSeconds', 'eventBytes', 'jobAgeSeconds', 'jobBytes'] as const;
const KEYS = [...NUMBERS, 'storage'] as const;

/** Takes the refusal of a server for an outcome. */
const refused =
  (name: string) =>
  async (error: unknown): Promise<Ensured> => {
    const { isRefusal } = await import('../../bus/bus-problems.ts');
    if (!isRefusal(error)) throw error;
    return { name, outcome: 'refused', differences: [error.problem.reason] };
  };

/** The values of flags, variables and file. Throws UsageError. */
function streamSettings(given: Readonly<Record<string, unknown>>): Partial<StreamSettings> {
  const { storage } = given;
  if (storage !== undefined && storage !== 'file' && storage !== 'memory') {
    throw new UsageError('storage: must be file or memory');
  }
  const numbers = NUMBERS.flatMap((key) => {
    const value = given[key];
    if (value === undefined) return [];
    const number = Number(value);
    const { least, most } = STREAM_LIMITS[key];
    if (Number.isSafeInteger(number) && number >= least && number <= most) {
      return [[key, number] as const];
    }
    throw new UsageError(`${key}: must be a whole number, ${least} to ${most}`);
  });
  return { ...Object.fromEntries(numbers), ...(storage !== undefined && { storage }) };
}
