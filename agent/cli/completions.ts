import { Help, type Command } from 'commander';
import { allCommands } from './program.ts';

// Completions of voltnet for three shells, made from its commands. Each finds the command that the words before the cursor
// name, and offers its commands and options, or files.

interface Offered {
  /** `network put`; empty for the program itself. */
  readonly path: string;
  readonly commands: readonly { readonly name: string; readonly text: string }[];
  readonly options: readonly {
    readonly flag: string;
    readonly short: string | undefined;
    readonly text: string;
    readonly takesValue: boolean;
  }[];
}

/** Name of each shell, and what its completion reads. `program` has all commands. */
export function completions(program: Command): Readonly<Record<'bash' | 'zsh' | 'fish', string>> {
  const offers = allCommands(program).map((command) => offered(program, command));
  return { bash: bash(offers), zsh: zsh(offers), fish: fish(offers) };
}

const help = new Help();

function offered(program: Command, command: Command): Offered {
  const names: string[] = [];
  for (let one: Command | null = command; one !== null && one !== program; one = one.parent) {
    names.unshift(one.name());
  }
  return {
    path: names.join(' '),
    commands: help
      .visibleCommands(command)
      .map((one) => ({ name: one.name(), text: one.description() })),
    options: help
      .visibleOptions(command)
      .map(({ long, short, description, required, optional }) => ({
        flag: long ?? '',
        short,
        text: description,
        takesValue: required || optional,
      })),
  };
}

/** Words of the program that are followed by a value of their own. */
const valued = (offers: readonly Offered[]): string[] => [
  ...new Set(
    offers.flatMap(({ options }) =>
      options.filter(({ takesValue }) => takesValue).map(({ flag }) => flag),
    ),
  ),
];

const paths = (offers: readonly Offered[]): string[] =>
  offers.map(({ path }) => path).filter((path) => path !== '');

/** Options of the program go with every command. */
const optionsAt = (offers: readonly Offered[], { path, options }: Offered): Offered['options'] =>
  path === '' ? options : [...options, ...(offers[0]?.options ?? [])];

const bash = (offers: readonly Offered[]): string => `# bash completion for voltnet

_voltnet() {
  local command='' previous='' word words='' i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    [[ $word != -- ]] || return 0
    case $previous in
      ${valued(offers).join(' | ')}) previous='' && continue ;;
    esac
    previous=$word
    case \${command:+$command }$word in
      ${paths(offers).map(quoted).join(' | ')}) command=\${command:+$command }$word ;;
    esac
  done
  case $previous in
    ${valued(offers).join(' | ')}) return 0 ;;
  esac
  case $command in
${offers
  .map((offer) => {
    const { path, commands } = offer;
    const words = [
      ...commands.map(({ name }) => name),
      ...optionsAt(offers, offer).map(({ flag }) => flag),
    ];
    return `    ${quoted(path)}) words=${quoted([...new Set(words)].join(' '))} ;;`;
  })
  .join('\n')}
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "\${COMP_WORDS[COMP_CWORD]}")
}

# Where none of them fits: files.
complete -o default -F _voltnet voltnet
`;

const zsh = (offers: readonly Offered[]): string => `#compdef voltnet

local command='' previous='' word
local -a commands options
for word in \${words[2,CURRENT-1]}; do
  [[ $word != -- ]] || { _files; return }
  case $previous in
    (${valued(offers).join('|')}) previous=''; continue ;;
  esac
  previous=$word
  case "\${command:+$command }$word" in
    (${paths(offers).map(quoted).join('|')}) command="\${command:+$command }$word" ;;
  esac
done
case $previous in
  (${valued(offers).join('|')}) _files; return ;;
esac
case $command in
${offers
  .map((offer) => {
    const described = (name: string, text: string): string =>
      quoted(`${name}:${text.replaceAll(':', '\\:')}`);
    const commands = offer.commands.map(({ name, text }) => described(name, text)).join(' ');
    const options = optionsAt(offers, offer)
      .map(({ flag, text }) => described(flag, text))
      .join(' ');
    return `  (${quoted(offer.path)})\n    commands=(${commands})\n    options=(${options}) ;;`;
  })
  .join('\n')}
esac
if [[ $PREFIX == -* ]]; then
  _describe -o option options
elif (( $#commands )); then
  _describe command commands
else
  _files
fi
`;

const fish = (offers: readonly Offered[]): string => `# fish completion for voltnet

function __voltnet_command
    set -l command ''
    set -l previous ''
    for word in (commandline -opc)[2..]
        switch $previous
            case ${valued(offers).join(' ')}
                set previous ''
                continue
        end
        set previous $word
        set -l longer (string trim -- "$command $word")
        switch $longer
            case ${paths(offers).map(quoted).join(' ')}
                set command $longer
        end
    end
    test "$command" = "$argv[1]"
end

${offers
  .flatMap(({ path, commands, options }) => {
    // Options of the program go with every command.
    const at = `-n ${quoted(`__voltnet_command ${quoted(path)}`.replaceAll("'", '"'))}`;
    return [
      ...commands.map(
        ({ name, text }) => `complete -c voltnet ${at} -f -a ${quoted(name)} -d ${quoted(text)}`,
      ),
      ...options.map(({ flag, short, text, takesValue }) =>
        [
          'complete -c voltnet',
          ...(path === '' ? [] : [at]),
          `-l ${flag.slice(2)}`,
          ...(short === undefined ? [] : [`-s ${short.slice(1)}`]),
          ...(takesValue ? ['-r'] : []),
          `-d ${quoted(text)}`,
        ].join(' '),
      ),
    ];
  })
  .join('\n')}
`;

/** A word of each of these shells. */
const quoted = (text: string): string => `'${text.replaceAll("'", '’')}'`;
