import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createSecureContext } from 'node:tls';
import { fileProblem } from '#protocol/file-problem.ts';

// Files that a configuration names: passwords, keys and certificates.

/** A file that was named cannot be used: the message names the setting and the file. */
export class FileError extends Error {
  readonly code = 'FILE';
}

/** The text of a file. Throws FileError, also for one that is empty. */
export function readNamed(setting: string, file: string): string {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    throw new FileError(`${setting}: ${fileProblem(cause)}: ${file}`, { cause });
  }
  if (text.trim() === '') throw new FileError(`${setting}: ${file} is empty`);
  return text;
}

export interface TlsFiles {
  readonly caFile?: string | null;
  readonly certFile?: string | null;
  readonly keyFile?: string | null;
}

const PARTS = { caFile: 'ca', certFile: 'cert', keyFile: 'key' } as const;

/**
 * The content of TLS files. Throws FileError where one cannot be read, is empty, or holds something else, or where the
 * key is not the certificate's.
 */
export function readTls(
  setting: string,
  files: TlsFiles,
): { readonly ca?: string; readonly cert?: string; readonly key?: string } {
  const read: { ca?: string; cert?: string; key?: string } = {};
  for (const name of ['caFile', 'certFile', 'keyFile'] as const) {
    const file = files[name];
    if (file === undefined || file === null || file === '') continue;
    const key = `${setting}.${name}`;
    const text = readNamed(key, file);
    read[PARTS[name]] = text;
    try {
      // OpenSSL passes over an authority that is none, and would believe the system's in its place.
      if (name === 'keyFile') createSecureContext({ ...read, ca: undefined });
      else certificateIn(text);
    } catch (cause) {
      throw new FileError(`${key}: ${file} cannot be used: ${reasonOf(cause)}`, { cause });
    }
  }
  return read;
}

const certificateIn = (text: string): X509Certificate => new X509Certificate(text);

const reasonOf = (cause: unknown): string =>
  cause instanceof Error ? cause.message : String(cause);
