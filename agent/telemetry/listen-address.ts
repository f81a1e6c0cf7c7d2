import { isIPv6 } from 'node:net';

export interface ListenAddress {
  readonly host: string;
  readonly port: number;
}

/** `127.0.0.1:9464`, `[::1]:9464`, `0.0.0.0:9464`, `localhost:9464`. Throws an Error that says what is wrong. */
export function parseListen(text: string): ListenAddress {
  const [, bracketed, plain, digits] = /^(?:\[([^\]]*)\]|([^:[\]]*)):(\d{1,5})$/.exec(text) ?? [];
  const host = bracketed ?? plain;
  const port = Number(digits);
  const isHost =
    bracketed === undefined
      ? /^[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?$/.test(plain ?? '')
      : isIPv6(bracketed);
  if (host === undefined || !isHost || port < 1 || port > 65_535) {
    throw new Error('must be an address and a port, like 127.0.0.1:9464 or [::1]:9464');
  }
  return { host, port };
}
