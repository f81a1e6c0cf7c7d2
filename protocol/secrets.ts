// What must not be printed, and the one function that takes it out of what is. Every printer passes its text through
// `redacted`: the log, both command lines, health, and the errors of answers and events.

/** Shorter ones occur everywhere by chance: to hide them would make all that is printed unreadable. */
const SHORTEST = 4;
/** Passwords are read anew for each connection, and may be others each time. */
const MOST = 64;
const HIDDEN = '***';

/** Oldest first. */
const known = new Set<string>();

/** Takes note of a secret, which is answered, in every form in which a message could quote it. */
export function keptSecret(secret: string): string {
  const escaped = JSON.stringify(secret).slice(1, -1);
  for (const form of [secret, escaped, encodedForm(secret)]) {
    known.delete(form);
    if (form.length >= SHORTEST) known.add(form);
  }
  for (const oldest of known) {
    if (known.size <= MOST) break;
    known.delete(oldest);
  }
  return secret;
}

/** The secret in a file's text: without the line feed that editors add. */
export const secretIn = (text: string): string => keptSecret(text.replace(/\r?\n$/, ''));

/**
 * Takes note of the passwords in addresses like `nats://user:password@host,nats://user:password@other`, also in what is no
 * address: whatever is before an `@` counts.
 */
export function keepSecretsOf(addresses: string): void {
  for (const one of [addresses, ...addresses.split(',')]) {
    const [, userinfo] = /^(?:[a-z][a-z0-9+.-]*:\/\/)?(.*)@/is.exec(one) ?? [];
    if (userinfo === undefined) continue;
    const password = userinfo.slice(userinfo.indexOf(':') + 1);
    for (const form of [password, decodedForm(password)]) keptSecret(form);
  }
}

/** The text without passwords in addresses, and without the secrets that were taken note of. */
export function redacted(text: string): string {
  let clean = text.replace(USERINFO, (_, scheme: string, user: string, password?: string) =>
    password === undefined ? `${scheme}${HIDDEN}@` : `${scheme}${user}:${HIDDEN}@`,
  );
  for (const secret of [...known].toSorted((a, b) => b.length - a.length)) {
    clean = clean.replaceAll(secret, HIDDEN);
  }
  return clean;
}

/** What JSON.parse says, without the piece of the text that it quotes. */
export function jsonProblem(cause: unknown): string {
  const message = cause instanceof Error ? cause.message : String(cause);
  return message.replace(/,? (\.\.\.)?".*$/s, '');
}

/** To the last `@`, so that one in a password does not leave the rest of it. */
const USERINFO = /([a-z][a-z0-9+.-]*:\/\/)([^\s"':]*)(:[^\s"']*)?@/gi;

function decodedForm(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** encodeURIComponent throws for half of a surrogate pair. */
function encodedForm(text: string): string {
  try {
    return encodeURIComponent(text);
  } catch {
    return text;
  }
}
