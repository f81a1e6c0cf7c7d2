import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { namesLoopback } from './listen.ts';

const TOKEN_BYTES = 32;
const COOKIE_SECONDS = 86_400;

/** What becomes of a request before anybody looks at what it asks for. */
export type Admission =
  | { readonly admitted: true }
  | {
      readonly admitted: false;
      readonly status: number;
      readonly reason: string;
      readonly headers?: Readonly<Record<string, string>>;
    };

/**
 * Who may ask. On loopback everybody who names it: a page of somebody else, whose name was made to lead to loopback (DNS
 * rebinding), sends another name. Elsewhere whoever has the token: from the address once, from a cookie afterwards.
 */
export class Gate {
  readonly #token: string | null;
  readonly #cookie: string;

  /** `port`: cookies are not held apart by port, so that of another dashboard has another name. */
  constructor({ isLoopback, port }: { isLoopback: boolean; port: number }) {
    this.#token = isLoopback ? null : randomBytes(TOKEN_BYTES).toString('base64url');
    this.#cookie = `voltnet-${port}`;
  }

  /** What is added to the address that is told to the operator. */
  get query(): string {
    return this.#token === null ? '' : `?token=${this.#token}`;
  }

  admit(request: IncomingMessage, url: URL): Admission {
    const { method, headers } = request;
    if (method !== 'GET') {
      return refused(405, 'only GET', { allow: 'GET' });
    }
    if (this.#token === null) {
      if (!namesLoopback(headers.host ?? ''))
        return refused(421, 'this is served to loopback only');
    } else {
      const given = url.searchParams.get('token');
      if (given !== null && url.pathname === '/' && isSame(given, this.#token)) {
        // Without the token in it, the address may be seen by whoever looks at the screen.
        return refused(303, 'see /', { location: '/', 'set-cookie': this.#setCookie(this.#token) });
      }
      if (!isSame(cookieOf(headers.cookie, this.#cookie), this.#token)) {
        return refused(401, 'open the address that voltnet dashboard has printed, with its token');
      }
    }
    // Another page may not read an answer, but it could keep us busy.
    const site = headers['sec-fetch-site'] ?? 'none';
    if (url.pathname.startsWith('/api/') && site !== 'none' && site !== 'same-origin') {
      return refused(403, 'only the page itself may ask this');
    }
    return { admitted: true };
  }

  #setCookie(token: string): string {
    return `${this.#cookie}=${token}; HttpOnly; SameSite=Strict; Path=/; Max-Age=${COOKIE_SECONDS}`;
  }
}

const refused = (
  status: number,
  reason: string,
  headers: Readonly<Record<string, string>> = {},
): Admission => ({ admitted: false, status, reason, headers });

function cookieOf(header: string | undefined, name: string): string {
  const pairs = (header ?? '').split(';').map((pair) => pair.trim());
  return pairs.find((pair) => pair.startsWith(`${name}=`))?.slice(name.length + 1) ?? '';
}

/** In a time that says nothing of where they differ, nor of how long they are. */
const isSame = (given: string, token: string): boolean =>
  timingSafeEqual(digest(given), digest(token));

const digest = (text: string): Buffer => createHash('sha256').update(text).digest();
