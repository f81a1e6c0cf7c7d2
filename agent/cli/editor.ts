import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { UsageError } from './errors.ts';

/**
 * Writes `text` to a file and opens it in the user's editor, with the terminal; resolves with what was saved when the
 * editor has ended. The editor is a command of the shell, as everywhere: `code --wait`. Throws UsageError.
 */
export async function editFile(
  file: string,
  text: string,
  env: Readonly<Record<string, string | undefined>>,
): Promise<string> {
  writeFileSync(file, text, { mode: 0o600 });
  const editor = [env['VISUAL'], env['EDITOR']].find((one) => (one ?? '') !== '') ?? 'vi';
  const { exitCode, signalCode } = await withoutInterrupts(async () => {
    const child = spawn('sh', ['-c', `${editor} "$1"`, 'sh', file], { stdio: 'inherit' });
    await once(child, 'exit');
    return child;
  });
  const how = exitCode === 0 ? '' : `${editor} ended with ${exitCode ?? signalCode}; `;
  let saved: string;
  try {
    saved = readFileSync(file, 'utf8');
  } catch (cause) {
    throw new UsageError(`${how}the file is gone, and nothing was changed`, { cause });
  }
  if (exitCode !== 0) throw new UsageError(`${how}your text is in ${file}`);
  return saved;
}

/** Ctrl-C goes to all who have the terminal, and means the editor as long as there is one. */
async function withoutInterrupts<T>(work: () => Promise<T>): Promise<T> {
  const signals = ['SIGINT', 'SIGQUIT'] as const;
  for (const signal of signals) process.on(signal, ignore);
  try {
    return await work();
  } finally {
    for (const signal of signals) process.off(signal, ignore);
  }
}

const ignore = (): void => {};
