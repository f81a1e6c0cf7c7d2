/** Addresses of NATS servers, and as whom to connect, if the addresses say it. */
export interface NatsUrl {
  /** Without user and password. */
  readonly servers: readonly string[];
  readonly user?: string;
  readonly password?: string;
  readonly token?: string;
}

/** The settings that say as whom to connect. */
export const CREDENTIAL_KEYS = [
  'username',
  'passwordFile',
  'tokenFile',
  'nkeyFile',
  'credentialsFile',
] as const;

/** A subject without wildcards, below which only the fleet's own messages are sent. */
export const SUBJECT = /^[^\s.*>]+(\.[^\s.*>]+)*$/;

/** What is wrong with these settings taken together; undefined if nothing is. */
export function problemOfUser(
  settings: Readonly<Partial<Record<(typeof CREDENTIAL_KEYS)[number], string | null>>>,
): string | undefined {
  const given = CREDENTIAL_KEYS.filter((key) => (settings[key] ?? null) !== null);
  if (given.includes('username') !== given.includes('passwordFile')) {
    return 'nats.username, nats.passwordFile: must be given together';
  }
  const ways = given.filter((key) => key !== 'passwordFile').map((key) => `nats.${key}`);
  return ways.length > 1 ? `${ways.join(', ')}: only one can be given` : undefined;
}

const ADDRESS = /^((?:nats|tls|wss?):\/\/)?(?:(.*)@)?([^\s@/?#]+)\/?$/;

/**
 * Reads `nats://host:4222`, or without the scheme `host:4222`, also several separated by commas, also with `user:password@` or `token@`, whose special
 * characters are percent-encoded. Throws Error; no message quotes the text, which may hold a password.
 */
export function parseNatsUrl(text: string): NatsUrl {
  const servers: string[] = [];
  const users = new Set<string>();
  for (const one of text.split(',')) {
    const [, scheme = '', userinfo, address] = ADDRESS.exec(one.trim()) ?? [];
    // A word alone is rather a mistake than the name of a server.
    const isWord = scheme === '' && !/:\d+$/.test(address ?? '');
    if (address === undefined || isWord || !isReachable(addressOf(address))) {
      throw new Error('must be addresses like nats://host:4222, separated by commas');
    }
    servers.push(`${scheme}${address}`);
    if (userinfo !== undefined) users.add(userinfo);
  }
  const [userinfo] = users;
  if (userinfo === undefined) return { servers };
  if (users.size > 1) throw new Error('must have the same user and password in each address');
  const [first = '', ...rest] = userinfo.split(':');
  if (rest.length === 0) return { servers, token: decoded(first) };
  return { servers, user: decoded(first), password: decoded(rest.join(':')) };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch (cause) {
    throw new Error('must have the % of user and password as %25', { cause });
  }
}

export interface ServerAddress {
  readonly name: string;
  readonly port: number;
}

const DEFAULT_PORT = 4_222;
const LAST_PORT = 65_535;

const isReachable = ({ name, port }: ServerAddress): boolean =>
  /^[^[\]]+$/.test(name) && Number.isInteger(port) && port > 0 && port <= LAST_PORT;

/** Host and port of one of `NatsUrl.servers`: `nats://[::1]:4222`, `tls://nats.example.org`. */
export function addressOf(server: string): ServerAddress {
  const address = server.replace(/^[a-z]+:\/\//, '');
  const [, bracketed, port] = /^\[([^\]]+)\](?::(\d+))?$/.exec(address) ?? [];
  if (bracketed !== undefined) return { name: bracketed, port: Number(port ?? DEFAULT_PORT) };
  const [name = '', ...rest] = address.split(':');
  // Colons without brackets: an IPv6 address without a port.
  if (rest.length > 1) return { name: address, port: DEFAULT_PORT };
  return { name, port: Number(rest[0] ?? DEFAULT_PORT) };
}
