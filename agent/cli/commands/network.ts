import type { Command } from 'commander';
import type { VoltNetworkClient } from '#protocol/client.ts';
import type { NetworkListAnswer } from '#protocol/network.ts';
import { readJsonObject } from '../attach-request.ts';
import { details, table } from '../page.ts';
import type { Shell } from '../shell.ts';
import { UsageError } from '../errors.ts';
import { wholeNumber } from '../units.ts';
import { addNetworkEditCommands } from './network-edit.ts';

/** `network put`, `get`, `show`, `list`, `delete`, `edit`, `diff`: the networks of the whole fleet. */
export function addNetworkCommands(program: Command, shell: Shell): void {
  const network = program
    .command('network')
    .description('networks of the fleet: put, get, show, list, edit, diff, delete')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet network put volt0.json
  $ voltnet network list
  $ voltnet network show volt0
  $ voltnet network delete volt0`,
    );
  addPut(network, shell);
  addGet(network, shell);
  addShow(network, shell);
  addList(network, shell);
  addDelete(network, shell);
  addNetworkEditCommands(network, shell);
}

const addPut = (network: Command, shell: Shell): Command =>
  network
    .command('put')
    .description('create a network, or replace the revision that is named')
    .argument('<file>', 'the network as JSON; - for standard input')
    .option('--revision <number>', 'replace this revision of the network')
    .addHelpText(
      'after',
      `
Examples:
  $ cat volt0.json
  {
    "network": "volt0",
    "subnet": "10.42.0.0/24",
    "gateway": "10.42.0.1",
    "pool": { "start": "10.42.0.2", "end": "10.42.0.254" },
    "reservations": { "vm-web": "10.42.0.10" }
  }
  $ voltnet network put volt0.json
  $ echo '{"network":"lab","subnet":"10.77.0.0/24"}' | voltnet network put -

  Change it: take the revision from "network get", so that nobody's change is lost
  $ voltnet network put volt0.json --revision 3

The same content again is no error. Other content without --revision is (exit code 5).`,
    )
    .action(async (file: string, flags: { revision?: string }) => {
      const keys = readJsonObject(file);
      const revision = wholeNumber('--revision', flags.revision);
      const { network: name } = keys;
      if (typeof name !== 'string') throw new UsageError(`${file}: has no "network"`);
      const body = { ...keys, network: name, ...(revision !== undefined && { revision }) };
      const answer = await shell.withClient(({ client }) => client.putNetwork(body));
      shell.output().result(answer, () => {
        const what = answer.created ? 'created, revision' : 'is at revision';
        return [`${name} ${what} ${answer.revision}`];
      });
    });

const addGet = (network: Command, shell: Shell): Command =>
  network
    .command('get')
    .description('show a network, its revision and how full it is')
    .argument('<network>')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet network get volt0
  $ voltnet network get volt0 --json | jq .usage.free`,
    )
    .action(async (name: string) => {
      const answer = await shell.withClient(({ client }) => client.getNetwork(name));
      shell.output().result(answer, () => {
        const { usage } = answer;
        const summary = details([
          ['revision', answer.revision],
          ['addresses', usage.size],
          ['used', usage.used],
          ['free', usage.free],
          ['reserved', usage.reserved],
          ['cooling', usage.cooling],
          ['suspect', usage.suspect],
        ]);
        return [...JSON.stringify(answer.network, null, 2).split('\n'), ...summary];
      });
    });

const addShow = (network: Command, shell: Shell): Command =>
  network
    .command('show')
    .description('show how full a network is')
    .argument('<network>')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet network show volt0

addresses: what can be given out unasked. free: at once. reserved: for one workload, and not held.
cooling: released a moment ago. suspect: held by hosts that have fallen silent.`,
    )
    .action(async (name: string) => {
      const {
        network: shown,
        revision,
        usage,
      } = await shell.withClient(({ client }) => client.getNetwork(name));
      shell
        .output()
        .result({ network: shown.network, revision, usage }, () =>
          table(
            ['NETWORK', 'ADDRESSES', 'USED', 'FREE', 'RESERVED', 'COOLING', 'SUSPECT'],
            [
              [
                shown.network,
                usage.size,
                usage.used,
                usage.free,
                usage.reserved,
                usage.cooling,
                usage.suspect,
              ],
            ],
          ),
        );
    });

const addList = (network: Command, shell: Shell): Command =>
  network
    .command('list')
    .description('list the networks of the fleet')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet network list
  $ voltnet network list --json | jq -r '.networks[].network.network'`,
    )
    .action(async () => {
      const networks = await shell.withClient(({ client }) => allNetworks(client));
      shell.output().result({ networks }, () =>
        table(
          ['NETWORK', 'TYPE', 'SUBNET', 'GATEWAY', 'IPV6', 'REVISION'],
          networks.map(({ network: one, revision }) => [
            one.network,
            one.type,
            one.subnet,
            one.gateway,
            one.ipv6?.subnet,
            revision,
          ]),
        ),
      );
    });

/** The networks of the fleet, page by page. */
export async function allNetworks(
  client: Pick<VoltNetworkClient, 'listNetworks'>,
): Promise<NetworkListAnswer['networks']> {
  const networks = [];
  let cursor: string | undefined;
  do {
    const page = await client.listNetworks({ cursor });
    networks.push(...page.networks);
    ({ cursor } = page);
  } while (cursor !== undefined);
  return networks;
}

const addDelete = (network: Command, shell: Shell): Command =>
  network
    .command('delete')
    .description('delete a network that nothing is attached to')
    .argument('<network>')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet network delete volt0

Exit code 5 while something is attached to it, 6 while the last detaches are under way.
A network that is not there is deleted already: no error.`,
    )
    .action(async (name: string) => {
      const answer = await shell.withClient(({ client }) => client.deleteNetwork(name));
      shell
        .output()
        .result(answer, () => [answer.deleted ? `${name} deleted` : `${name} was not there`]);
    });
