import { readFileSync } from 'node:fs';
import { createAgentCommand } from '#agent/cli/agent-command.ts';
import { STANDARD } from '#agent/cli/printer.ts';
import { allCommands, createProgram } from '#agent/cli/program.ts';
import { Shell } from '#agent/cli/shell.ts';
import { asyncApi } from './asyncapi.ts';
import {
  agentExitTable,
  commandPage,
  conditionPage,
  conditionTable,
  configurationPage,
  errorPage,
  errorTable,
  exitTable,
  nameTable,
  schemaTable,
  subjectTable,
} from './pages.ts';
import {
  differencePage,
  eventHeaderTable,
  eventPage,
  eventTable,
  headerTable,
  localSocketPage,
} from './message-pages.ts';
import { type JsonSchema, schemaNamed, SCHEMAS } from './schemas.ts';
import { at, keyTable } from './tables.ts';

const ROOT = new URL('../..', import.meta.url);

/** Tables within pages that people write, by the name in their markers: `<!-- generated: errors -->`. */
const TABLES: Readonly<Record<string, () => string>> = {
  errors: errorTable,
  conditions: conditionTable,
  'exit codes': exitTable,
  'agent exit codes': agentExitTable,
  schemas: schemaTable,
  attach: () => keyTable(schemaNamed('attach-request')),
  'attach tap': () => keyTable(at(schemaNamed('attach-request'), 'tap')),
  'attach ports': () => keyTable(at(schemaNamed('attach-request'), 'ports')),
  'attach answer': () => keyTable(schemaNamed('attach-answer')),
  'dry run answer': () => keyTable(schemaNamed('attach-dry-run-answer')),
  attachment: () => keyTable(schemaNamed('attachment')),
  device: () => keyTable(at(schemaNamed('attachment'), 'device')),
  detach: () => keyTable(schemaNamed('detach-request')),
  'detach answer': () => keyTable(schemaNamed('detach-answer')),
  update: () => keyTable(schemaNamed('update-request')),
  list: () => keyTable(schemaNamed('list-request')),
  cordon: () => keyTable(schemaNamed('cordon-request')),
  network: () => keyTable(networkKeys()),
  headers: headerTable,
  subjects: subjectTable,
  names: nameTable,
  'event headers': eventHeaderTable,
  events: eventTable,
};

/** What `network.put` takes, but for `revision`, which the text explains. */
function networkKeys(): JsonSchema {
  const { properties = {}, ...rest } = schemaNamed('network-put-request');
  const { revision: _told, ...keys } = properties;
  return { ...rest, properties: keys };
}

const PAGES_WITH_TABLES = ['docs/protocol.md', 'docs/operating.md', 'docs/reference/README.md'];

const MARKED = /(<!-- generated: ([a-z ]+) -->\n\n)[^]*?(\n\n<!-- end -->)/g;

/** Every file that is made of the code, with its content, by its path. */
export async function documents(version: string): Promise<ReadonlyMap<string, string>> {
  const shell = new Shell({ env: {}, terminal: STANDARD });
  const program = await createProgram({ shell, version, words: ['help'] });
  const [, ...commands] = allCommands(program);
  return new Map([
    ...[...SCHEMAS].map(([name, made]): [string, string] => [
      `docs/reference/schemas/${name}.json`,
      json(forTools(made)),
    ]),
    ['docs/reference/asyncapi.json', json(asyncApi())],
    ['docs/reference/errors.md', errorPage()],
    ['docs/reference/conditions.md', conditionPage()],
    ['docs/reference/differences.md', differencePage()],
    ['docs/reference/events.md', eventPage()],
    ['docs/reference/local-socket.md', localSocketPage()],
    ['docs/reference/configuration.md', configurationPage()],
    ['docs/reference/command-line.md', commandPage(program, createAgentCommand(version), commands)],
    ...PAGES_WITH_TABLES.map((name): [string, string] => [
      name,
      withTables(readFileSync(new URL(name, ROOT), 'utf8')),
    ]),
  ]);
}

const json = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;

/** A page with its tables made anew. */
export const withTables = (page: string): string =>
  page.replaceAll(MARKED, (_all, start: string, name: string, end: string) => {
    const made = TABLES[name];
    if (made === undefined) throw new Error(`there is no table "${name}"`);
    return start + made() + end;
  });

/** Descriptions without what only a page of Markdown has: links, and words about tables below. */
function forTools(made: JsonSchema): unknown {
  return JSON.parse(
    JSON.stringify(made, (key, value: unknown) =>
      key === 'description' && typeof value === 'string'
        ? value.replaceAll(/\[([^\]]*)\]\([^)]*\)/g, '$1').replaceAll(/:? ?see (below|errors)/g, '')
        : value,
    ),
  );
}
