import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import packageJson from '../../package.json' with { type: 'json' };
import { createAgentCommand } from './agent-command.ts';
import { completions } from './completions.ts';
import { agentPage, configurationPage, voltnetPage } from './manual.ts';
import { STANDARD } from './printer.ts';
import { createProgram } from './program.ts';
import { Shell } from './shell.ts';

// Run when a Debian package is made: writes manual pages and completions into a folder that is /usr/share there.
// Arguments: the folder, and the date of the pages.

const [, , folder = '', date = ''] = process.argv;
const { version } = packageJson;
const read = (name: string): string =>
  readFileSync(new URL(`../../docs/${name}`, import.meta.url), 'utf8');
const operating = read('operating.md');
const reference = read('reference/configuration.md');
const shell = new Shell({ env: {}, terminal: STANDARD });
const program = await createProgram({ shell, version, words: ['help'] });

for (const { name, section, text } of [
  voltnetPage(program, { version, date }),
  agentPage(createAgentCommand(version), operating, { version, date }),
  configurationPage({ operating, reference }, { version, date }),
]) {
  put(`man/man${section}/${name}.${section}`, text);
}
const { bash, zsh, fish } = completions(program);
put('bash-completion/completions/voltnet', bash);
put('zsh/vendor-completions/_voltnet', zsh);
put('fish/vendor_completions.d/voltnet.fish', fish);

function put(name: string, text: string): void {
  mkdirSync(dirname(join(folder, name)), { recursive: true });
  writeFileSync(join(folder, name), text);
}
