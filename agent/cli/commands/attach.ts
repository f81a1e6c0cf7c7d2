import type { Command } from 'commander';
import type { AttachRequest } from '#protocol/attachment.ts';
import { type AttachFlags, attachRequest } from '../attach-request.ts';
import type { Shell } from '../shell.ts';
import { collect } from '../units.ts';
import { attachmentDetails, dryRunDetails } from '../views.ts';

/** `attach`: a flag for every field of the request, or the request itself. */
export function addAttachCommand(program: Command, shell: Shell): void {
  withFlags(program.command('attach'))
    .description('give a VM or a container its interface and addresses')
    .addHelpText('after', EXAMPLES)
    .action(async (flags: AttachFlags) => {
      const request = attachRequest(flags);
      if (request.dryRun === true) return dryRun(shell, request);
      const answer = await shell.withHost(({ client, settings: { host } }) =>
        client.attach(host, request),
      );
      const output = shell.output();
      output.result(answer, () => attachmentDetails(answer.attachment));
      for (const warning of answer.warnings ?? []) output.note(`warning: ${warning}`);
    });
}

async function dryRun(shell: Shell, request: AttachRequest): Promise<void> {
  const answer = await shell.withHost(({ client, settings: { host } }) =>
    client.dryRun(host, request),
  );
  shell.output().result(answer, () => dryRunDetails(answer));
}

const withFlags = (attach: Command): Command =>
  attach
    .option('--id <id>', 'attachment id: yours to choose, unique in the fleet')
    .option('--workload <id>', 'what it is for, as vm-abc123; reservations go by this')
    .option('--kind <kind>', 'vm or container')
    .option('--network <name>', 'network to attach to')
    .option('--netns <path>', "container: its namespace's file, as /run/netns/x")
    .option('--ifname <name>', 'container: name of the interface inside (default: eth0)')
    .option('--address <address>', 'ask for this address; one per family', collect)
    .option('--mac <mac>', "the workload's MAC (default: made from the id)")
    .option('--mtu <bytes>', "MTU (default: the network's)")
    .option('--hostname <name>', 'host name for DHCP and DNS')
    .option('--queues <number>', 'vm: queues of the TAP (default: 1)')
    .option('--no-vnet-hdr', 'vm: a TAP without virtio header (Firecracker and QEMU want one)')
    .option('--owner <uid>', 'vm: user that may claim the TAP, besides root')
    .option('--group <gid>', 'vm: group that may claim the TAP')
    .option('--port <port>', 'publish a port: 8080:80, 127.0.0.1:8080:80, 53:53/udp', collect)
    .option('--ingress <rate>', 'towards the workload, bits per second: 500k, 100M, 2.5G')
    .option('--egress <rate>', 'from the workload, bits per second')
    .option('--ttl <time>', 'detach by itself after 90s, 15m, 2h; a repeat extends it')
    .option('--label <key=value>', 'note for yourself; shown in list and events', collect)
    .option('--request-id <id>', 'a repeat with this id gets the first answer')
    .option('--dry-run', 'say what would be done, do nothing')
    .option('--file <file>', 'the request as JSON; - for standard input; flags win over it');

const EXAMPLES = `
Examples:
  A VM: its TAP is made, and claimed by "voltnet exec" or over the agent's socket
  $ voltnet attach --id web --workload vm-web --kind vm --network volt0

  A container: a veth pair, one end inside its namespace as eth0, addressed and up
  $ ip netns add db
  $ voltnet attach --id db --workload container-db --kind container --network volt0 \\
      --netns /run/netns/db

  A chosen address, two queues, owned by user 1000
  $ voltnet attach --id web2 --workload vm-web2 --kind vm --network volt0 \\
      --address 10.42.0.50 --queues 2 --owner 1000

  A published port, which only host-only networks have, and a limit of 100 Mbit/s, for one hour
  $ echo '{"network":"nat0","type":"host-only","subnet":"10.43.0.0/24","gateway":"10.43.0.1"}' |
      voltnet network put -
  $ ip netns add job
  $ voltnet attach --id job --workload container-job --kind container --network nat0 \\
      --netns /run/netns/job --port 127.0.0.1:8080:80 --egress 100M --ttl 1h

  What that would do, and nothing else
  $ voltnet attach --id web3 --workload vm-web3 --kind vm --network volt0 --dry-run

  From a file, as an orchestrator would send it; only the address for a script
  $ voltnet attach --file web.json --json | jq -r '.attachment.addresses[0].address'

The same request again changes nothing and gets the same answer (replayed). The same id with other
content is exit code 5, an address that somebody holds at the moment 6.`;
