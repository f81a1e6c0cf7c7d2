import { Help, type Command } from 'commander';
import { allCommands } from './program.ts';

// Manual pages, made from what runs: the command lines themselves, and the documentation that tests hold against the code.

export interface Page {
  readonly name: string;
  readonly section: 1 | 5 | 8;
  /** Of the file with the page. */
  readonly text: string;
}

interface Edition {
  readonly version: string;
  /** `2026-11-29` */
  readonly date: string;
}

/** `voltnet(1)`: every command with its options and examples. `program` has all commands. */
export function voltnetPage(program: Command, edition: Edition): Page {
  const [, ...commands] = allCommands(program);
  const families = new Set(commands.filter(({ commands: below }) => below.length > 0));
  const parts = [
    section('DESCRIPTION', paragraph(program.description())),
    section('OPTIONS', optionsOf(program)),
    '.SH COMMANDS\n',
    ...commands.filter((command) => !families.has(command)).map((command) => commandPart(command)),
    section('NOTES', verbatim(afterHelp(program))),
  ];
  const summary = 'networks of virtual machines and containers';
  return page({ name: 'voltnet', section: 1, summary, synopsis: usage(program), edition }, parts);
}

/** `volt-network-agent(8)`. `operating` is docs/operating.md. */
export function agentPage(command: Command, operating: string, edition: Edition): Page {
  const parts = [
    section('DESCRIPTION', paragraph(command.description())),
    section('OPTIONS', optionsOf(command)),
    section('EXIT STATUS', chapter(operating, 'Exit codes')),
    section('HEALTH', chapter(operating, 'Health')),
    section('METRICS', chapter(operating, 'Metrics')),
    section('FILES', chapter(operating, 'Files')),
  ];
  const summary = 'agent for the network of the virtual machines and containers of a host';
  const name = command.name();
  return page({ name, section: 8, summary, synopsis: usage(command), edition }, parts);
}

/** `agent.json(5)`. `operating` is docs/operating.md, `reference` docs/reference/configuration.md. */
export function configurationPage(
  { operating, reference }: { readonly operating: string; readonly reference: string },
  edition: Edition,
): Page {
  const parts = [
    section('DESCRIPTION', chapter(operating, 'Configuration')),
    section('KEYS', chapter(reference, 'Keys')),
    section('DEFAULTS', chapter(reference, 'Defaults')),
  ];
  const summary = 'configuration of volt-network-agent(8) and voltnet(1)';
  const synopsis = '/etc/volt/network/agent.json';
  return page({ name: 'agent.json', section: 5, summary, synopsis, edition }, parts);
}

const PAGES = ['voltnet(1)', 'volt-network-agent(8)', 'agent.json(5)'];

function page(
  head: Pick<Page, 'name' | 'section'> & { summary: string; synopsis: string; edition: Edition },
  parts: readonly string[],
): Page {
  const { name, section: number, summary, synopsis, edition } = head;
  const others = PAGES.filter((other) => other !== `${name}(${number})`);
  const text = [
    `.TH "${name.toUpperCase()}" ${number} ${edition.date} "volt-network ${edition.version}"\n`,
    section('NAME', `${escaped(name)} \\- ${escaped(summary)}\n`),
    section('SYNOPSIS', `.B ${escaped(synopsis)}\n`),
    ...parts,
    section('SEE ALSO', paragraph(`${others.join(', ')}, /usr/share/doc/volt-network/`)),
  ].join('');
  return { name, section: number, text };
}

const help = new Help();

const usage = (command: Command): string => help.commandUsage(command).trim();

function commandPart(command: Command): string {
  const rows = help.visibleArguments(command).map((argument) => ({
    term: help.argumentTerm(argument),
    text: help.argumentDescription(argument),
  }));
  const parts = [
    paragraph(command.description()),
    ...rows.map(row),
    optionsOf(command),
    verbatim(afterHelp(command)),
  ];
  return section(escaped(usage(command)), parts.join(''), 'SS');
}

const optionsOf = (command: Command): string =>
  help
    .visibleOptions(command)
    .map((option) => row({ term: help.optionTerm(option), text: help.optionDescription(option) }))
    .join('');

/** What help says after arguments and options: examples, and how the command behaves. */
export function afterHelp(command: Command): string {
  let whole = '';
  command.configureOutput({ writeOut: (text) => (whole += text) });
  command.outputHelp();
  return whole.slice(command.helpInformation().length).replace(/^\n+/, '');
}

// Markdown, as far as docs/operating.md has it.

/** What stands below a heading of the second level. */
function chapter(markdown: string, heading: string): string {
  const start = markdown.indexOf(`\n## ${heading}\n`);
  if (start === -1) throw new Error(`there is no chapter "${heading}"`);
  const [, body = ''] =
    /^\n## .*\n([\s\S]*?)(?=\n## |$(?![\s\S]))/.exec(markdown.slice(start)) ?? [];
  return blocks(body.replaceAll(/^<!--.*-->$/gm, ''))
    .map(block)
    .join('')
    .replaceAll(/^(\.SS .*\n)\.PP\n/gm, '$1');
}

/** Paragraphs, tables and fenced text. */
const blocks = (markdown: string): string[] =>
  markdown.match(/^```[\s\S]*?^```$|^(?!```|\n).+(?:\n(?!```|\n).+)*/gm) ?? [];

function block(text: string): string {
  if (text.startsWith('```')) return verbatim(text.replace(/^```.*\n|```$/g, ''));
  if (text.startsWith('### ')) return `.SS ${plain(text.slice(4))}\n`;
  if (text.startsWith('|')) return table(text);
  return paragraph(text);
}

/** Each row a term and what the other columns say. */
function table(text: string): string {
  const [head = [], , ...rows] = text.split('\n').map((line) =>
    line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
  const columns = head.slice(1);
  return rows
    .map(([term = '', ...cells]) => {
      const said = cells
        .map((cell, n) => (columns.length === 1 || cell === '' ? cell : `${columns[n]}: ${cell}`))
        .filter((cell) => cell !== '');
      return row({ term: term.replaceAll('`', ''), text: said.join('; ') });
    })
    .join('');
}

// roff; man(7)

const escaped = (text: string): string =>
  text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll('^', '\\(ha')
    .replaceAll('~', '\\(ti')
    .replaceAll('`', '\\(ga')
    .replaceAll("'", '\\(aq')
    .replaceAll('…', '...')
    .replaceAll('²', '\\(S2')
    // A line that begins with one of these would be a command.
    .replaceAll(/^\./gm, '\\&.');

const plain = (markdown: string): string =>
  escaped(markdown.replaceAll(/\[([^\]]*)\]\([^)]*\)/g, '$1').replaceAll('**', '')).replaceAll(
    /\\\(ga([^\n]*?)\\\(ga/g,
    '\\fB$1\\fR',
  );

/** A heading begins a paragraph by itself. */
const section = (heading: string, body: string, macro: 'SH' | 'SS' = 'SH'): string =>
  `.${macro} ${heading}\n${body.replace(/^\.PP\n/, '')}`;

const paragraph = (text: string): string => `.PP\n${plain(text)}\n`;

const row = ({ term, text }: { term: string; text: string }): string =>
  `.TP\n\\fB${escaped(term)}\\fR\n${text === '' ? '\\&' : plain(text)}\n`;

const verbatim = (text: string): string =>
  text.trim() === '' ? '' : `.PP\n.nf\n${escaped(text.trimEnd())}\n.fi\n`;
