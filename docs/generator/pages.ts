import { Help, type Command } from 'commander';
import { afterHelp } from '#agent/cli/manual.ts';
import { AGENT_EXIT, EXIT, exitCodeOf } from '#agent/cli/exit-codes.ts';
import { configSchema, OVERRIDES } from '#agent/config.ts';
import { CONDITIONS } from '#protocol/conditions.ts';
import { ERRORS } from '#protocol/errors.ts';
import {
  DEVICE_NAME_PATTERN,
  HOST_PATTERN,
  ID_PATTERN,
  NETWORK_PATTERN,
  NO_DEVICES,
} from '#protocol/names.ts';
import {
  DEFAULT_PREFIX,
  EVENT_STREAM,
  HOST_OPERATIONS,
  JOB_OPERATIONS,
  JOB_STREAM,
  LEDGER_OPERATIONS,
  NETWORK_CHANGES,
  NETWORK_OPERATIONS,
} from '#protocol/subjects.ts';
import { exchanges } from './asyncapi.ts';
import {
  AGENT_EXIT_MEANINGS,
  CONDITION_MEANINGS,
  ERROR_MEANINGS,
  ERROR_REMEDIES,
  EXIT_MEANINGS,
} from './codes.ts';
import { type JsonSchema, schemaNamed } from './schemas.ts';
import { code, table, typeOf } from './tables.ts';

// The pages of docs/reference, and the tables that other pages of docs have.

/** Pages name others of docs/ as docs/security.md does: by file name. Here they are one folder up. */
const fromReference = (markdown: string): string =>
  markdown.replaceAll(/\]\(([a-z-]+\.md)/g, '](../$1');

const yes = (is: boolean): string => (is ? 'yes' : 'no');

/** `(docs/security.md)` in a text for terminals as a link. */
const linked = (text: string): string =>
  text.replaceAll(/\bdocs\/([a-z]+\.md)\b/g, (_all, file: string) => `[${file}](${file})`);

const said = (meanings: Readonly<Record<string, string>>, name: string): string =>
  meanings[name] ?? '';

export const errorTable = (): string =>
  table(
    ['code', 'number', 'retryable', 'meaning'],
    Object.entries(ERRORS).map(([name, { status, retryable }]) => [
      code(name),
      String(status),
      yes(retryable),
      said(ERROR_MEANINGS, name),
    ]),
  );

export const conditionTable = (): string =>
  table(
    ['condition', 'stops attaches', 'what it means', 'what to do'],
    Object.entries(CONDITIONS).map(([name, { blocks, remedy }]) => [
      code(name),
      yes(blocks),
      said(CONDITION_MEANINGS, name),
      linked(remedy),
    ]),
  );

export const exitTable = (): string =>
  table(
    ['code', 'of `voltnet`'],
    Object.entries(EXIT).map(([name, number]) => [code(String(number)), said(EXIT_MEANINGS, name)]),
  );

export const agentExitTable = (): string =>
  table(
    ['code', 'of `volt-network-agent`'],
    Object.entries(AGENT_EXIT).map(([name, number]) => [
      code(String(number)),
      said(AGENT_EXIT_MEANINGS, name),
    ]),
  );

export const errorPage = (): string =>
  page('Errors', [
    'Every code of the field `error.code` in answers and in the event `failed` ([protocol.md](protocol.md#errors)), and the exit code of',
    '`voltnet` for it. `retryable` of an answer wins over that of its code here.',
    '',
    table(
      ['code', 'number', 'retryable', 'exit code', 'meaning', 'what to do'],
      Object.entries(ERRORS).map(([name, { status, retryable }]) => [
        code(name),
        String(status),
        yes(retryable),
        String(exitCodeOf({ code: name, retryable })),
        said(ERROR_MEANINGS, name),
        said(ERROR_REMEDIES, name),
      ]),
    ),
  ]);

export const conditionPage = (): string =>
  page('Conditions', [
    'Everything that may be wrong with an agent while it runs: `conditions` of `voltnet status --json`, of the NATS service and of the',
    'log ([operating.md](operating.md#health)). Names are stable.',
    '',
    table(
      ['condition', 'area', 'stops attaches', 'what it means', 'what to do'],
      Object.entries(CONDITIONS).map(([name, { area, blocks, remedy }]) => [
        code(name),
        code(area),
        yes(blocks),
        said(CONDITION_MEANINGS, name),
        linked(remedy),
      ]),
    ),
  ]);

export const configurationPage = (): string =>
  page('Configuration', [
    'Every key of `/etc/volt/network/agent.json`, and the variable and flag of `volt-network-agent` that set it, too. Flags win over',
    'variables, variables over the file. Every key may be left out, unknown keys are refused.',
    '[schemas/configuration.json](schemas/configuration.json) is the same as a JSON Schema.',
    '',
    '## Keys',
    '',
    table(['key', 'type', 'default', 'meaning', 'variable', 'flag'], settingRows()),
    '',
    '## Defaults',
    '',
    '`host` and `nats.inboxPrefix` are made of the host name.',
    '',
    '```json',
    JSON.stringify(configSchema.parse({}), null, 2),
    '```',
  ]);

interface Setting {
  readonly key: string;
  readonly property: JsonSchema;
}

function settings(map: JsonSchema, path = ''): Setting[] {
  return Object.entries(map.properties ?? {}).flatMap(([name, property]) => {
    const key = path === '' ? name : `${path}.${name}`;
    // A section, also one that may be null, or elements of a list.
    const section = [property, ...(property.anyOf ?? [])]
      .flatMap((one) => [one, ...(one.items === undefined ? [] : [one.items])])
      .find(({ properties }) => properties !== undefined);
    const below = section === undefined ? [] : settings(section, key);
    return section === property ? below : [{ key, property }, ...below];
  });
}

const settingRows = (): string[][] =>
  settings(schemaNamed('configuration')).map(({ key, property }) => {
    const { default: usual, description = '' } = property;
    const override = OVERRIDES.find((one) => one.key === key);
    return [
      code(key),
      typeOf(property).replace(' or nil', ' or null'),
      usual === undefined ? '' : code(JSON.stringify(usual)),
      description,
      override === undefined ? '' : code(override.variable),
      override !== undefined && 'flag' in override ? code(override.flag) : '',
    ];
  });

const help = new Help();

/** `program` has all commands. */
export function commandPage(program: Command, agent: Command, all: readonly Command[]): string {
  const commands = all.filter(({ commands: below }) => below.length === 0);
  return page('Command line', [
    '`voltnet --help` and `voltnet COMMAND --help` say the same, in a terminal.',
    '',
    '## voltnet',
    '',
    program.description(),
    '',
    optionTable(program),
    '',
    ...commands.flatMap(commandPart),
    '## Exit codes',
    '',
    exitTable(),
    '',
    'Which error has which: [errors.md](errors.md).',
    '',
    '## volt-network-agent',
    '',
    agent.description(),
    '',
    optionTable(agent),
    '',
    agentExitTable(),
  ]);
}

function commandPart(command: Command): string[] {
  const args = help
    .visibleArguments(command)
    .map((one) => [code(help.argumentTerm(one)), help.argumentDescription(one)]);
  const options = help.visibleOptions(command).some(({ long }) => long !== '--help');
  return [
    `### ${help.commandUsage(command).replace(' [options]', '').trim()}`,
    '',
    command.description(),
    '',
    ...(args.length > 0 ? [table(['argument', ''], args), ''] : []),
    ...(options ? [optionTable(command), ''] : []),
    '```text',
    afterHelp(command).trimEnd(),
    '```',
    '',
  ];
}

const optionTable = (command: Command): string =>
  table(
    ['option', ''],
    help
      .visibleOptions(command)
      .map((option) => [
        code(help.optionTerm(option)),
        help.optionDescription(option).replaceAll('|', '\\|'),
      ]),
  );

const NOTE = '<!-- Written by `npm run docs`. -->';

/** Links within docs/reference have no folder in their texts either. */
const OWN =
  /\]\(\.\.\/(errors|conditions|configuration|command-line|differences|events|local-socket)\.md/g;

export function page(title: string, lines: readonly string[]): string {
  const text = [NOTE, '', `# ${title}`, '', ...lines, ''].join('\n');
  return fromReference(text).replaceAll(OWN, ']($1.md');
}

/** Every subject with the schemas of what is sent there and what comes back. */
export const schemaTable = (): string =>
  table(
    ['subject', 'sent', 'answered'],
    exchanges().map(({ subject, sent, answered }) => [
      code(subject),
      schemaFile(sent),
      answered.map(schemaFile).join(', '),
    ]),
  );

export const schemaFile = (name: string): string => `[${name}](schemas/${name}.json)`;

/** Subjects that differ in their last token. */
const alike = (start: string, operations: readonly string[]): string => {
  const [first = '', ...others] = operations;
  return [`${start}.${first}`, ...others.map((one) => `.${one}`)].map(code).join(' ');
};

/** Every subject, those of one kind in a row. */
export const subjectTable = (): string => {
  const p = DEFAULT_PREFIX;
  return table(
    ['subject', 'way', 'answered by'],
    [
      [alike(`${p}.host.<host>`, HOST_OPERATIONS), 'request and reply', 'the agent of that host'],
      [alike(`${p}.network`, NETWORK_OPERATIONS), 'request and reply', 'any one agent'],
      [alike(`${p}.ledger`, LEDGER_OPERATIONS), 'request and reply', 'any one agent'],
      [
        alike(`${p}.job.<host>`, JOB_OPERATIONS),
        `JetStream stream ${code(JOB_STREAM)}`,
        'an event',
      ],
      [code(`${p}.event.<host>.<network>.<type>`), `JetStream stream ${code(EVENT_STREAM)}`, ''],
      [
        alike(`${p}.changed.<network>`, NETWORK_CHANGES),
        'published, without content',
        'whoever listens',
      ],
    ],
  );
};

/** A pattern as pages show it. */
const form = ({ source }: RegExp): string => code(source.replace(/^\^/, '').replace(/\$$/, ''));

export const nameTable = (): string =>
  table(
    ['name', 'form'],
    [
      ['attachment id, workload id', form(ID_PATTERN)],
      ['network', form(NETWORK_PATTERN)],
      [
        'host id',
        `${form(HOST_PATTERN)}. A host's default is its host name, other characters made \`_\``,
      ],
      ['request id', '1 to 128 characters, no control characters'],
      ['device', `${form(DEVICE_NAME_PATTERN)}; not ${NO_DEVICES.map(code).join(', ')}`],
    ],
  );
