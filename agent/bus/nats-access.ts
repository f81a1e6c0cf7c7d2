import {
  type Authenticator,
  type ConnectionOptions,
  credsAuthenticator,
  nkeyAuthenticator,
  type TlsOptions,
  tokenAuthenticator,
  usernamePasswordAuthenticator,
} from 'nats';
import { keptSecret, secretIn } from '#protocol/secrets.ts';
import { FileError, readNamed, readTls, type TlsFiles } from '#ipam-store/named-files.ts';
import { parseNatsUrl } from './nats-url.ts';

/** Where NATS is, and as whom to connect: the `nats` section of agent.json. */
export interface NatsAccess {
  readonly url: string;
  readonly username?: string | null;
  readonly passwordFile?: string | null;
  readonly tokenFile?: string | null;
  readonly nkeyFile?: string | null;
  readonly credentialsFile?: string | null;
  readonly inboxPrefix?: string | null;
  readonly tls?: TlsFiles | null;
}

/**
 * The options for the library to connect. Files with passwords, tokens and keys are read at each connection, also
 * when the library connects again by itself, so that changed files are taken up; a FileError then names the setting
 * and the file. Throws Error for a malformed URL.
 */
export function connectionOptionsOf(access: NatsAccess): ConnectionOptions {
  const { url, inboxPrefix = null, tls = null } = access;
  const authenticator = authenticatorOf(access);
  return {
    servers: [...parseNatsUrl(url).servers],
    ...(inboxPrefix !== null && { inboxPrefix }),
    ...(authenticator !== undefined && { authenticator }),
    ...(tls !== null && { tls: tlsOf(tls) }),
  };
}

/**
 * Reads every file that a connection would read now. Throws FileError, which names the setting and the file.
 */
export function checkAccess(access: NatsAccess): void {
  // Any nonce will do: the check is whether the files are there and hold what they should.
  authenticatorOf(access)?.('nonce');
  if (access.tls) readTls('nats.tls', access.tls);
}

function authenticatorOf(access: NatsAccess): Authenticator | undefined {
  const { username, passwordFile, tokenFile, nkeyFile, credentialsFile } = access;
  if (credentialsFile) return fromFile('credentialsFile', credentialsFile, credentials);
  if (nkeyFile)
    return fromFile('nkeyFile', nkeyFile, (text) => nkeyAuthenticator(bytesOf(text.trim())));
  if (tokenFile) return fromFile('tokenFile', tokenFile, tokenAuthenticator);
  if (username && passwordFile) {
    const withPassword = (text: string): Authenticator =>
      usernamePasswordAuthenticator(username, text);
    return fromFile('passwordFile', passwordFile, withPassword);
  }
  const { user, password, token } = parseNatsUrl(access.url);
  if (token !== undefined) return tokenAuthenticator(token);
  return user === undefined ? undefined : usernamePasswordAuthenticator(user, password);
}

/** Reads the file for each connection. No message quotes its content. */
function fromFile(
  key: string,
  file: string,
  make: (content: string) => Authenticator,
): Authenticator {
  return (nonce) => {
    const content = secretIn(readNamed(`nats.${key}`, file));
    try {
      return make(content)(nonce);
    } catch (cause) {
      throw new FileError(`nats.${key}: ${file} does not hold what it should`, { cause });
    }
  };
}

/** A file as `nsc` writes it: a JWT and a seed between lines of dashes. */
function credentials(text: string): Authenticator {
  for (const line of text.split('\n').map((one) => one.trim())) {
    if (line !== '' && !line.startsWith('-') && !line.includes(' ')) keptSecret(line);
  }
  // The library wants a line feed after each of the lines of dashes, and nothing else there.
  return credsAuthenticator(bytesOf(`${text.replaceAll('\r', '')}\n`));
}

const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);

const tlsOf = ({ caFile, certFile, keyFile }: TlsFiles): TlsOptions => ({
  ...(caFile && { caFile }),
  ...(certFile && { certFile }),
  ...(keyFile && { keyFile }),
});
