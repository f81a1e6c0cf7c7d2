/** Why a file that an operator has named cannot be read, in words that do not name it. The code comes first. */
export function fileProblem(cause: unknown): string {
  const code = cause instanceof Error && 'code' in cause ? String(cause.code) : '';
  const words = WORDS[code];
  if (words !== undefined) return `${code}: ${words}`;
  return cause instanceof Error ? cause.message : String(cause);
}

const WORDS: Readonly<Record<string, string>> = {
  ENOENT: 'there is no such file',
  ENOTDIR: 'what it should lie in is no folder',
  // Node names no file in its own message for a folder.
  EISDIR: 'it is a folder',
  EACCES: 'this user may not read it',
  EPERM: 'this user may not read it',
  ELOOP: 'its symbolic links lead in a circle',
};
