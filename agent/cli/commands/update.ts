import type { Command } from 'commander';
import type { UpdateRequest } from '#protocol/attachment.ts';
import { bandwidthOf, labelsOf } from '../attach-request.ts';
import { UsageError } from '../errors.ts';
import { parsePort } from '../ports.ts';
import type { Shell } from '../shell.ts';
import { collect, wholeNumber } from '../units.ts';
import { attachmentDetails } from '../views.ts';

/** `update`: changes what can be changed of a live attachment. */
export function addUpdateCommand(program: Command, shell: Shell): void {
  program
    .command('update')
    .description('change ports, bandwidth, labels or filter addresses while it runs')
    .argument('<id>', 'attachment id')
    .option('--port <port>', 'publish these ports, and no others: 8080:80, 53:53/udp', collect)
    .option('--no-ports', 'publish none')
    .option('--ingress <rate>', 'towards the workload, bits per second: 500k, 100M, 2.5G')
    .option('--egress <rate>', 'from the workload, bits per second')
    .option('--no-bandwidth', 'no limits')
    .option('--label <key=value>', 'these labels, and no others', collect)
    .option('--filter-address <address>', 'may send from this excluded address, too', collect)
    .option('--no-filter-addresses', 'only from its own')
    .option('--generation <number>', 'only if it still is this generation')
    .option('--request-id <id>', 'a repeat with this id gets the first answer')
    .addHelpText('after', EXAMPLES)
    .action(async (id: string, flags: UpdateFlags) => {
      const answer = await shell.withHost(({ client, settings: { host } }) =>
        client.update(host, updateRequest(id, flags)),
      );
      shell.output().result(answer, () => attachmentDetails(answer.attachment));
    });
}

interface UpdateFlags {
  readonly port?: readonly string[];
  readonly ports: boolean;
  readonly ingress?: string;
  readonly egress?: string;
  readonly bandwidth: boolean;
  readonly label?: readonly string[];
  readonly filterAddress?: string[];
  readonly filterAddresses: boolean;
  readonly generation?: string;
  readonly requestId?: string;
}

function updateRequest(id: string, flags: UpdateFlags): UpdateRequest {
  const ports = flags.ports ? flags.port?.map(parsePort) : [];
  const limits = bandwidthOf(flags);
  const limited = Object.keys(limits).length > 0;
  const filterAddresses = flags.filterAddresses ? flags.filterAddress : [];
  const generation = wholeNumber('--generation', flags.generation);
  const request = {
    ...(ports !== undefined && { ports }),
    ...((limited || !flags.bandwidth) && { bandwidth: flags.bandwidth ? limits : {} }),
    ...(flags.label !== undefined && { labels: labelsOf(flags.label) }),
    ...(filterAddresses !== undefined && { filterAddresses }),
  };
  if (Object.keys(request).length === 0) throw new UsageError('nothing to change');
  return {
    id,
    ...request,
    ...(generation !== undefined && { generation }),
    ...(flags.requestId !== undefined && { requestId: flags.requestId }),
  };
}

const EXAMPLES = `
Examples:
  $ voltnet update job --port 8080:80 --port 8443:443
  $ voltnet update web --ingress 100M --egress 50M
  $ voltnet update job --no-ports --label tier=batch

What no flag names stays as it is; what one names takes the place of all that was there.`;
