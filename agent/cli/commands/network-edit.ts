import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { VoltError } from '#protocol/errors.ts';
import { printableLines } from '#protocol/printable.ts';
import { readJsonObject } from '../attach-request.ts';
import { editFile } from '../editor.ts';
import { UsageError } from '../errors.ts';
import { EXIT } from '../exit-codes.ts';
import { type Page, table } from '../page.ts';
import { isRecord, parseJsonObject } from '../settings.ts';
import type { Shell } from '../shell.ts';
import { valueText } from '../views.ts';

/** `network edit` and `network diff`: a change, made by hand or looked at before it is put. */
export function addNetworkEditCommands(network: Command, shell: Shell): void {
  network
    .command('edit')
    .description('change a network in an editor')
    .argument('<network>')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet network edit volt0
  $ EDITOR=nano voltnet network edit volt0

Opens the network as JSON in $VISUAL, $EDITOR or vi, and puts what was saved in the place of the
revision that was read. If it is refused, or somebody else has changed the network meanwhile (exit
code 5), your text stays in a file, whose name is told.`,
    )
    .action((name: string) => edit(shell, name));
  network
    .command('diff')
    .description('compare a file with the network as it is')
    .argument('<file>', 'the network as JSON; - for standard input')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet network diff volt0.json
  $ voltnet network diff volt0.json && echo "nothing to put"

Exit code 8 where "network put" would change something, or make the network.`,
    )
    .action((file: string) => diff(shell, file));
}

async function edit(shell: Shell, name: string): Promise<void> {
  const { network, revision } = await shell.withClient(({ client }) => client.getNetwork(name));
  const folder = mkdtempSync(join(tmpdir(), 'voltnet-'));
  const file = join(folder, `${name}.json`);
  const before = `${printableLines(JSON.stringify(network, null, 2))}\n`;
  const output = shell.output();
  const text = await editFile(file, before, shell.env);
  if (text === before) {
    rmSync(folder, { recursive: true });
    output.result({ network, revision, created: false }, () => [`${name} is as it was`]);
    return;
  }
  try {
    const keys = parseJsonObject(text, file);
    const body = { ...keys, network: name, revision };
    if (keys['network'] !== name) throw new UsageError(`"network" has to stay "${name}"`);
    const answer = await shell.withClient(({ client }) => client.putNetwork(body));
    rmSync(folder, { recursive: true });
    output.result(answer, () => [`${name} is at revision ${answer.revision}`]);
  } catch (error) {
    output.notice({ file }, `your text is in ${file}`);
    throw error;
  }
}

async function diff(shell: Shell, file: string): Promise<void> {
  const { parseNetwork, withGatewayMode } = await import('#protocol/network.ts');
  const wanted = withGatewayMode(parseNetwork(readJsonObject(file)));
  const { network: name } = wanted;
  const found = await shell.withClient(({ client }) =>
    client.getNetwork(name).catch((error: unknown) => {
      if (error instanceof VoltError && error.code === 'UNKNOWN_NETWORK') return undefined;
      throw error;
    }),
  );
  const [now, then] = [flat(found?.network), flat(wanted)];
  const differences = [...new Set([...now.keys(), ...then.keys()])]
    .filter((path) => now.get(path) !== then.get(path))
    .map((path) => ({ path, now: now.get(path) ?? null, file: then.get(path) ?? null }));
  const revision = found?.revision ?? null;
  shell.output().result({ network: name, revision, differences }, (): Page => {
    if (differences.length === 0) return [`${name}: nothing differs from revision ${revision}`];
    if (found === undefined) return [`${name}: there is no such network yet`];
    return table(
      ['KEY', 'NOW', 'FILE'],
      differences.map((one) => [one.path, valueText(one.now), valueText(one.file)]),
    );
  });
  if (differences.length > 0) shell.exitCode = EXIT.differs;
}

/** `ipv6.subnet` and so on, each with its value as JSON. */
function flat(value: unknown, path = ''): Map<string, string> {
  if (value === undefined) return new Map();
  if (!isRecord(value)) return new Map([[path, JSON.stringify(value)]]);
  return new Map(
    Object.entries(value).flatMap(([key, one]) => [
      ...flat(one, path === '' ? key : `${path}.${key}`),
    ]),
  );
}
