import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { UsageError } from './errors.ts';

/**
 * Writes `text` to a file and opens it in the user's editor, with the terminal; resolves when the editor has ended. The
 * editor is a command of the shell, as everywhere: `code --wait`.
 */
export async function editFile(
  file: string,
  text: string,
  env: Readonly<Record<string, string | undefined>>,
): Promise<void> {
  writeFileSync(file, text, { mode: 0o600 });
  const editor = [env['VISUAL'], env['EDITOR']].find((one) => (one ?? '') !== '') ?? 'vi';
  const child = spawn('sh', ['-c', `${editor} "$1"`, 'sh', file], { stdio: 'inherit' });
  const [code] = await once(child, 'exit');
  if (code !== 0)
    throw new UsageError(`${editor} ended with ${String(code)}; your text is in ${file}`);
}
