import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import type { CordonRequest } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import type { HostClient } from '../local-client.ts';
import type { Shell } from '../shell.ts';
import { counted } from '../units.ts';

const DRAIN_AT_ONCE = 8;
const DRAIN_LOOK_MS = 200;

/** `host cordon`, `host drain` and `host uncordon`: a host is emptied, for work on the machine or for good. */
export function addDrainCommands(host: Command, shell: Shell): void {
  host
    .command('cordon')
    .description('close a host to new attachments')
    .argument('<host>', 'host id')
    .option('--reason <text>', 'shown by status, and with each refusal')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet host cordon h1 --reason "new kernel, ticket 4711"
  $ voltnet host uncordon h1

Attaches are refused there (HOST_CORDONED) until "host uncordon", also after a restart of the agent
or the machine. What is attached stays, and may be repeated, updated and detached. "voltnet status"
says so, with exit code 8.`,
    )
    .action(async (name: string, { reason }: { reason?: string }) => {
      await order(shell, name, { cordoned: true, ...(reason !== undefined && { reason }) });
    });
  host
    .command('uncordon')
    .description('open a host to new attachments again')
    .argument('<host>', 'host id')
    .addHelpText('after', '\nExamples:\n  $ voltnet host uncordon h1')
    .action((name: string) => order(shell, name, { cordoned: false }));
  host
    .command('drain')
    .description('cordon a host, and detach everything on it')
    .argument('<host>', 'host id; named, so that it is no accident')
    .option('--reason <text>', 'shown by status, and with each refusal')
    .addHelpText(
      'after',
      `
Examples:
  Work on the machine
  $ voltnet host drain h1 --reason "new kernel, ticket 4711"
  $ voltnet host uncordon h1

  It goes for good
  $ voltnet host drain h7 && ssh h7 systemctl disable --now volt-network-agent
  $ voltnet host forget h7

Ends when nothing is attached there any more; the host stays cordoned. Workloads lose their network,
so stop or move them first.`,
    )
    .action(async (name: string, { reason }: { reason?: string }) => {
      const output = shell.output();
      const detached = await shell.withHost(
        async ({ client }) => {
          await client.cordon(name, { cordoned: true, ...(reason !== undefined && { reason }) });
          return detachAll(client, name, (left) => {
            output.note(`${counted(left, 'attachment')} left on ${name}`);
          });
        },
        { host: name },
      );
      output.result({ host: name, cordoned: true, detached }, () => [
        `${counted(detached, 'attachment')} detached, nothing left on ${name}; it is cordoned`,
      ]);
    });
}

async function order(shell: Shell, host: string, request: CordonRequest): Promise<void> {
  const answer = await shell.withHost(({ client }) => client.cordon(host, request), { host });
  shell
    .output()
    .result(answer, () => [
      answer.cordoned
        ? `${host} takes no new attachments: cordoned since ${answer.since ?? 'now'}`
        : `${host} takes new attachments`,
    ]);
}

/** Resolves with how many attachments there were when none is left. */
async function detachAll(
  client: HostClient,
  host: string,
  tell: (left: number) => void,
): Promise<number> {
  const seen = new Set<string>();
  for (;;) {
    const ids: string[] = [];
    for await (const { id } of client.listAll(host)) ids.push(id);
    if (ids.length === 0) return seen.size;
    tell(ids.length);
    for (const id of ids) seen.add(id);
    await inTurns(ids, (id) => detachOne(client, host, id));
    // The second half of a detach follows the answer.
    await sleep(DRAIN_LOOK_MS);
  }
}

/** Somebody else may detach it as well, or the agent may be busy with it: it is looked at again. */
async function detachOne(client: HostClient, host: string, id: string): Promise<void> {
  try {
    await client.detach(host, { id });
  } catch (error) {
    if (!(error instanceof VoltError) || error.code !== 'OVERLOADED') throw error;
    await sleep(error.retryAfterMs ?? DRAIN_LOOK_MS);
  }
}

/** A few at a time: the agent has others to serve. */
async function inTurns(
  ids: readonly string[],
  work: (id: string) => Promise<unknown>,
): Promise<void> {
  const left = [...ids];
  const lane = async (): Promise<void> => {
    for (let id = left.pop(); id !== undefined; id = left.pop()) await work(id);
  };
  await Promise.all(Array.from({ length: DRAIN_AT_ONCE }, lane));
}
