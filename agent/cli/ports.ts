import { UsageError } from './errors.ts';

export interface PortFlag {
  readonly protocol: 'tcp' | 'udp' | 'sctp';
  readonly hostPort: number;
  readonly port: number;
  readonly hostAddress?: string;
}

const PROTOCOLS: readonly string[] = ['tcp', 'udp', 'sctp'] satisfies PortFlag['protocol'][];

/**
 * `--port`: HOST_PORT:PORT with the protocol in front (`udp:53:53`) or behind (`53:53/udp`), tcp without
 * one, and an address of the host before the ports (`127.0.0.1:8080:80`, `[fd00::1]:8080:80`).
 */
export function parsePort(text: string): PortFlag {
  const form =
    /^(?:(?<front>[a-z]+):)?(?:(?<host>\[[^\]]+\]|[0-9.]+(?=:\d+:)):)?(?<hostPort>\d{1,5}):(?<port>\d{1,5})(?:\/(?<behind>[a-z]+))?$/;
  const { front, host, hostPort, port, behind } = form.exec(text)?.groups ?? {};
  const protocol = front ?? behind ?? 'tcp';
  const twice = front !== undefined && behind !== undefined;
  if (hostPort === undefined || port === undefined || twice || !isProtocol(protocol)) {
    throw new UsageError(
      `"${text}" is no port: write 8080:80, tcp:8080:80, 127.0.0.1:8080:80 or 53:53/udp`,
    );
  }
  return {
    protocol,
    hostPort: portNumber(hostPort, text),
    port: portNumber(port, text),
    ...(host !== undefined && { hostAddress: host.replace(/^\[|\]$/g, '') }),
  };
}

const isProtocol = (protocol: string): protocol is PortFlag['protocol'] =>
  PROTOCOLS.includes(protocol);

function portNumber(digits: string, text: string): number {
  const number = Number(digits);
  if (number >= 1 && number <= 65_535) return number;
  throw new UsageError(`"${text}" is no port: ${digits} is not between 1 and 65535`);
}
