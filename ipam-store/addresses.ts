import { lookup } from 'node:dns/promises';

/** The addresses of a host, by name or address, in one form each; none where its name is not known here. */
export async function addressesOf(host: string): Promise<string[]> {
  try {
    const found = await lookup(host, { all: true });
    // An IPv4-mapped address reaches what the IPv4 address reaches.
    return found.map(({ address }) => address.replace(/^::ffff:(?=[\d.]+$)/i, ''));
  } catch {
    return [];
  }
}

/** The first that is known here, of several names and addresses of one host; the first where none is. */
export async function firstKnown<Named extends { readonly host: string }>(
  named: readonly Named[],
): Promise<Named | undefined> {
  const [first, ...others] = named;
  if (others.length === 0) return first;
  for (const one of named) if ((await addressesOf(one.host)).length > 0) return one;
  return first;
}
