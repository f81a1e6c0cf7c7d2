import { Command, InvalidArgumentError } from 'commander';
import { FULL, QUICK, type Sizes } from './sizes.ts';

export interface Options {
  /** None: the suite, or with `against` that alone. */
  readonly names: readonly string[];
  readonly sizes: Sizes;
  /** A file for the figures, or `-` for standard output. */
  readonly json?: string;
  /** A commit whose agent is run beside this tree's. */
  readonly against?: string;
  /** Write the page and its charts. */
  readonly write: boolean;
  /** What was typed, as far as it has to do with the figures: no path of this machine. */
  readonly command: string;
}

interface Given {
  readonly quick?: true;
  readonly rounds?: number;
  readonly attachments?: number;
  readonly json?: string;
  readonly against?: string;
  readonly write?: true;
}

const isNumber = (word: string): boolean => /^\d+$/.test(word);

/** The words after `npm run bench --`. Throws CommanderError, also where it has shown the help that was asked for. */
export function parseOptions(
  words: readonly string[],
  benches: { readonly suite: readonly string[]; readonly others: readonly string[] },
): Options {
  const known = [...benches.suite, ...benches.others];
  const command = new Command('npm run bench --')
    .description('Figures beside those of others, in one run, in namespaces of its own.')
    .argument('[what...]', `benches, and sizes of fleets; known: ${known.join(', ')}`)
    .option('--quick', 'much less of everything: to see whether it works')
    .option('--rounds <n>', 'turns of each rival', positive)
    .option('--attachments <n>', 'how many are very many', positive)
    .option('--json <file>', 'write the figures to a file, or with - to standard output')
    .option('--against <commit>', "the agent of another commit beside this tree's, in turns")
    .option('--write', 'write docs/benchmarks.md and its charts')
    .addHelpText('after', `\nWithout a name: ${benches.suite.join(', ')}.`)
    .exitOverride();
  command.parse(words, { from: 'user' });
  const given = command.opts<Given>();
  const names = command.args.filter((word) => !isNumber(word));
  const unknown = names.filter((name) => !known.includes(name));
  if (unknown.length > 0) {
    command.error(`unknown: ${unknown.join(', ')}; known: ${known.join(', ')}`, { exitCode: 64 });
  }
  if (given.write === true && (names.length > 0 || given.against !== undefined)) {
    command.error('--write is for the whole suite', { exitCode: 64 });
  }
  const { rounds, attachments, json, against } = given;
  const told = [
    ...command.args,
    ...(given.quick === true ? ['--quick'] : []),
    ...(rounds === undefined ? [] : ['--rounds', rounds]),
    ...(attachments === undefined ? [] : ['--attachments', attachments]),
    ...(against === undefined ? [] : ['--against', against]),
    ...(given.write === true ? ['--write'] : []),
  ];
  return {
    names,
    sizes: {
      ...(given.quick === true ? QUICK : FULL),
      ...(rounds !== undefined && { rounds }),
      ...(attachments !== undefined && { attachments }),
      numbers: command.args.filter(isNumber).map(Number),
    },
    ...(json !== undefined && { json }),
    ...(against !== undefined && { against }),
    write: given.write === true,
    command: ['npm run bench', ...(told.length > 0 ? ['--', ...told] : [])].join(' '),
  };
}

function positive(word: string): number {
  const value = Number(word);
  if (!isNumber(word) || value === 0) throw new InvalidArgumentError('a number from 1 on is meant');
  return value;
}
