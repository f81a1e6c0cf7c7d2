import { open, rename } from 'node:fs/promises';

/**
 * Stores a value as a file of JSON, for this user alone, in place of what was there: written, synced, renamed, so that a
 * crash of the machine leaves the one or the other. Throws what the disk says.
 */
export async function writeDurably(path: string, value: object): Promise<void> {
  const file = await open(`${path}.tmp`, 'w', 0o600);
  try {
    await file.writeFile(`${JSON.stringify(value)}\n`);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(`${path}.tmp`, path);
}
