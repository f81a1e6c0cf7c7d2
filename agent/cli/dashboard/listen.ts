import { BlockList, isIP } from 'node:net';
import { UsageError } from '../errors.ts';

/** Where the dashboard is served. */
export interface Listen {
  /** An IP address, without brackets. */
  readonly address: string;
  /** 0: any that is free. */
  readonly port: number;
  readonly isLoopback: boolean;
}

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet('127.0.0.0', 8, 'ipv4');
LOOPBACK.addAddress('::1', 'ipv6');

/** `127.0.0.1:8180`, `[::1]:8180`, `localhost:8180`. Throws UsageError. */
export function parseListen(text: string): Listen {
  const [, bracketed, plain, digits] = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text) ?? [];
  const named = bracketed ?? plain;
  const address = named === 'localhost' ? '127.0.0.1' : (named ?? '');
  const port = Number(digits);
  const family = isIP(address);
  if ((bracketed === undefined) !== (family === 4) || family === 0 || !(port <= 65_535)) {
    throw new UsageError(
      `--listen "${text}": must be an IP address and a port, as 127.0.0.1:8180 or [::1]:8180`,
    );
  }
  const isLoopback = LOOPBACK.check(address, family === 4 ? 'ipv4' : 'ipv6');
  return { address, port, isLoopback };
}

/** As in a URL. */
export const urlOf = ({ address, port }: Pick<Listen, 'address' | 'port'>): string =>
  `http://${isIP(address) === 6 ? `[${address}]` : address}:${port}/`;

/** Whether a Host header names loopback, whatever the port: a tunnel of SSH may have another. */
export function namesLoopback(host: string): boolean {
  const [, bracketed, plain] = /^(?:\[([^\]]+)\]|([^:[\]]+))(?::\d{1,5})?$/.exec(host) ?? [];
  if (bracketed !== undefined) return isIP(bracketed) === 6 && LOOPBACK.check(bracketed, 'ipv6');
  if (plain?.toLowerCase() === 'localhost') return true;
  return plain !== undefined && isIP(plain) === 4 && LOOPBACK.check(plain, 'ipv4');
}
