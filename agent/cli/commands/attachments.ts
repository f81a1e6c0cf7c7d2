import type { Command } from 'commander';
import type {
  Attachment,
  CheckAnswer,
  FleetListAnswer,
  ListAnswer,
  ListRequest,
} from '#protocol/attachment.ts';
import { labelsOf } from '../attach-request.ts';
import { EXIT } from '../exit-codes.ts';
import { GUEST_FORMATS, guestConfig } from '../guest-config.ts';
import { UsageError } from '../errors.ts';
import { marked, type Page } from '../page.ts';
import type { Asked, Shell } from '../shell.ts';
import { collect, oneOf, wholeNumber } from '../units.ts';
import { labelled, type LabelledFleet, wholeFleet } from '../whole-fleet.ts';
import {
  attachmentDetails,
  attachmentTable,
  behindLine,
  differenceTable,
  fleetTable,
  notComparedLine,
  planTable,
} from '../views.ts';

/** `detach`, `get`, `guest-config`, `list`, `check`: what is attached on a host. */
export function addAttachmentCommands(program: Command, shell: Shell): void {
  addDetach(program, shell);
  addGet(program, shell);
  addGuestConfig(program, shell);
  addList(program, shell);
  addCheck(program, shell);
}

const addDetach = (program: Command, shell: Shell): Command =>
  program
    .command('detach')
    .description('take the interface away and release the addresses')
    .argument('<id>', 'attachment id')
    .option('--generation <number>', 'only if it still is this generation')
    .option('--request-id <id>', 'a repeat with this id gets the first answer')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet detach web
  $ voltnet detach web --generation 4294967301
  $ voltnet list --json | jq -r '.attachments[].id' | xargs -n1 voltnet detach

What is not attached is detached already: no error. With --generation, an attachment made anew since
is left alone (exit code 5).`,
    )
    .action(async (id: string, flags: DetachFlags) => {
      const { requestId } = flags;
      const generation = wholeNumber('--generation', flags.generation);
      const request = {
        id,
        ...(generation !== undefined && { generation }),
        ...(requestId !== undefined && { requestId }),
      };
      const answer = await shell.withHost(({ client, settings: { host } }) =>
        client.detach(host, request),
      );
      shell
        .output()
        .result(answer, () => [answer.detached ? `${id} detached` : `${id} was not attached`]);
    });

interface DetachFlags {
  readonly generation?: string;
  readonly requestId?: string;
}

const addGet = (program: Command, shell: Shell): Command =>
  program
    .command('get')
    .description('show one attachment')
    .argument('<id>', 'attachment id')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet get web
  $ voltnet get web --json | jq -r .attachment.device.name
  $ voltnet --host h2 get web`,
    )
    .action(async (id: string) => {
      const answer = await shell.withHost(({ client, settings: { host } }) =>
        client.get(host, { id }),
      );
      shell.output().result(answer, () => attachmentDetails(answer.attachment));
    });

const addGuestConfig = (program: Command, shell: Shell): Command =>
  program
    .command('guest-config')
    .description('print the network configuration of a guest, for one that does not ask by DHCP')
    .argument('<id>', 'attachment id, of a VM')
    .option('--format <format>', 'cloud-init (default), kernel, networkd or interfaces')
    .option('--ifname <name>', "the NIC's name in the guest (default: eth0)")
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet guest-config web > seed/network-config
  $ voltnet guest-config web --format networkd > guest/etc/systemd/network/10-nic.network
  $ voltnet guest-config web --format kernel
  ip=10.42.0.10::10.42.0.1:255.255.255.0::eth0:off

Formats: cloud-init is its network-config, version 2; kernel is for the kernel's command line, IPv4
alone; networkd is a .network file; interfaces is /etc/network/interfaces of Alpine and Debian.`,
    )
    .action(async (id: string, flags: { format?: string; ifname?: string }) => {
      const format = oneOf('--format', flags.format, GUEST_FORMATS) ?? 'cloud-init';
      const { attachment } = await shell.withHost(({ client, settings: { host } }) =>
        client.get(host, { id }),
      );
      const { ifname } = flags;
      const lines = guestConfig(attachment, { format, ...(ifname !== undefined && { ifname }) });
      shell.output().result({ format, lines }, () => lines);
    });

interface ListFlags {
  readonly allHosts?: boolean;
  readonly network?: string;
  readonly workload?: string;
  readonly kind?: string;
  readonly state?: string;
  readonly label?: readonly string[];
  readonly labels?: boolean;
  readonly limit?: string;
  readonly cursor?: string;
}

const addList = (program: Command, shell: Shell): Command =>
  program
    .command('list')
    .description('list what is attached on a host, or in the fleet')
    .option('--all-hosts', 'of the whole fleet, as the ledger has it')
    .option('--network <name>', 'only of this network')
    .option('--workload <id>', 'only of this workload')
    .option('--kind <kind>', 'only vm, or only container')
    .option('--state <state>', 'only attaching, attached, detaching or fenced')
    .option('--label <key=value>', 'only what has all of these labels', collect)
    .option('--labels', 'show labels; of the fleet, each host is asked for them')
    .option('--limit <number>', 'one page of at most so many, with a cursor when more follow')
    .option('--cursor <cursor>', 'the page after this cursor')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet list
  $ voltnet list --network volt0 --kind vm
  $ voltnet --host h2 list --json | jq -r '.attachments[] | [.id, .mac] | @tsv'
  $ voltnet list --all-hosts --network volt0
  $ voltnet list --all-hosts --label tier=web

  Page by page
  $ voltnet list --limit 100 --json > page1.json
  $ voltnet list --limit 100 --json --cursor "$(jq -r .cursor page1.json)"

With --all-hosts the agent answers from what it follows of the ledger, at most a heartbeat old.
While the ledger does not answer, networks are shown as they were, and it is said since when. Labels
are known to their hosts alone: --label and --labels ask each of them, over NATS.`,
    )
    .action(async (flags: ListFlags) => {
      if (flags.allHosts === true) return listFleet(shell, flags);
      const request = listRequest(flags);
      const output = shell.output();
      const answer = await shell.withHost(
        async ({ client, settings: { host } }): Promise<ListAnswer> => {
          if (isPaged(flags)) return client.list(host, request);
          const attachments: Attachment[] = [];
          for await (const one of client.listAll(host, request)) attachments.push(one);
          return { attachments };
        },
      );
      output.result(answer, () =>
        attachmentTable(answer.attachments, { labels: showsLabels(flags) }),
      );
      if (answer.cursor !== undefined) output.note(`more follow: --cursor ${answer.cursor}`);
    });

const isPaged = ({ limit, cursor }: ListFlags): boolean =>
  limit !== undefined || cursor !== undefined;

const showsLabels = ({ label, labels = false }: ListFlags): boolean =>
  labels || label !== undefined;

async function listFleet(shell: Shell, flags: ListFlags): Promise<void> {
  const { state, labels: wanted, ...asked } = listRequest(flags);
  if (state !== undefined) throw new UsageError('--state: is known on its host alone');
  const list = ({ client, settings: { host } }: Asked): Promise<FleetListAnswer> =>
    isPaged(flags) ? client.listFleet(host, asked) : wholeFleet(client, host, asked);
  const answer: FleetListAnswer | LabelledFleet = showsLabels(flags)
    ? await shell.withClient(async (connected) =>
        labelled(connected.client, await list(connected), wanted),
      )
    : await shell.withHost(list);
  const output = shell.output();
  output.result(answer, () => fleetTable(answer.attachments, { labels: showsLabels(flags) }));
  for (const one of answer.behind) output.note(behindLine(one));
  for (const { host, code } of 'silent' in answer ? answer.silent : []) {
    const left = wanted === undefined ? 'its labels are not shown' : 'what it has is left out';
    output.note(`${host} did not answer (${code}): ${left}`);
  }
  if (answer.cursor !== undefined) output.note(`more follow: --cursor ${answer.cursor}`);
}

/** The filters under the keys of the wire. A kind or state that does not exist is refused here by name. */
export function listRequest(flags: ListFlags): ListRequest {
  const { network, workload, cursor, label } = flags;
  const kind = oneOf('--kind', flags.kind, ['vm', 'container']);
  const state = oneOf('--state', flags.state, ['attaching', 'attached', 'detaching', 'fenced']);
  const limit = wholeNumber('--limit', flags.limit);
  return {
    ...(network !== undefined && { network }),
    ...(workload !== undefined && { workload }),
    ...(kind !== undefined && { kind }),
    ...(state !== undefined && { state }),
    ...(label !== undefined && { labels: labelsOf(label) }),
    ...(limit !== undefined && { limit }),
    ...(cursor !== undefined && { cursor }),
  };
}

const addCheck = (program: Command, shell: Shell): Command =>
  program
    .command('check')
    .description('compare records, kernel and ledger; change nothing')
    .argument('[id]', 'one attachment; all of the host without it')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet check
  $ voltnet check web || echo "look at web"

Exit code 8 when something differs or could not be compared, 0 when all is as recorded. While Redis
is away records and kernel are compared alone, and that is said.`,
    )
    .action(async (id: string | undefined) => {
      const answer = await shell.withHost(({ client, settings: { host } }) =>
        client.check(host, id === undefined ? {} : { id }),
      );
      const output = shell.output();
      output.result(answer, () => checkPage(answer));
      for (const one of answer.notCompared ?? []) output.note(notComparedLine(one));
      if (answer.truncated === true) output.note('there is more than one answer holds');
      if (!answer.inSync) shell.exitCode = EXIT.differs;
    });

function checkPage({ inSync, differences, plan = [] }: CheckAnswer): Page {
  if (inSync) return [marked('good', 'in sync')];
  if (differences.length + plan.length === 0) return ['what could be compared agrees'];
  return [...differenceTable(differences), ...planTable(plan)];
}
