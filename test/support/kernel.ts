import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { requireTool } from './tools.ts';

// Readers that share no code with what they check: iproute2's own view of the kernel.

/** One object of `ip -j`: what it has depends on the command. */
export type Row = Record<string, unknown> & {
  readonly flags: readonly string[];
  readonly addr_info: readonly { local: string; prefixlen: number }[];
};

/** `ip('-n', 'c1', 'addr')` runs `ip -j -n c1 addr`. Rows that are empty objects are left out. */
export function ip(...args: string[]): Row[] {
  return rows(execFileSync(requireTool('ip'), ['-j', ...args], { encoding: 'utf8' }));
}

export const bridge = (...args: string[]): Row[] =>
  rows(execFileSync(requireTool('bridge'), ['-j', ...args], { encoding: 'utf8' }));

/** The one row that an answer must have. */
export function only(found: readonly Row[]): Row {
  const [row] = found;
  if (row === undefined || found.length !== 1) throw new Error(`${found.length} rows, not one`);
  return row;
}

function rows(text: string): Row[] {
  if (text.trim() === '') return [];
  const parsed = JSON.parse(text) as Row[];
  return parsed.filter((row) => Object.keys(row).length > 0);
}

export const addNamespace = (name: string): void => {
  execFileSync(requireTool('ip'), ['netns', 'add', name]);
};

export const removeNamespace = (name: string): void => {
  execFileSync(requireTool('ip'), ['netns', 'delete', name]);
};

/** Names of the devices of the calling namespace. */
export const deviceNames = (): string[] => ip('link').map(({ ifname }) => String(ifname));

/** `bridge volt mac ["tap-web","02:…"]` for each element of each set and map, as `nft` sees them. */
export function nftElements(): string[] {
  const text = execFileSync(requireTool('nft'), ['-j', 'list', 'ruleset'], { encoding: 'utf8' });
  const { nftables } = JSON.parse(text) as {
    nftables: Record<string, { family: string; table: string; name: string; elem?: unknown[] }>[];
  };
  return nftables
    .flatMap((object) => [object['set'], object['map']])
    .filter((set) => set !== undefined)
    .flatMap(({ family, table, name, elem = [] }) =>
      elem.map((one) => `${family} ${table} ${name} ${JSON.stringify(one)}`),
    )
    .toSorted();
}

/** Files below a folder, by name. */
export const filesIn = (folder: string): string[] =>
  readdirSync(folder, { recursive: true }).map(String).toSorted();
