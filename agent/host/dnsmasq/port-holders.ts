import { readFileSync } from 'node:fs';
import { portHolders } from '#native/host-port.ts';

/** A process that has a port of DHCP or DNS. */
export interface ServicePortHolder {
  /** `UDP port 67 is held by dhcpd (pid 123)`. */
  readonly text: string;
  /** It is a dnsmasq of an agent. */
  readonly isOurs: boolean;
}

const PORTS = [
  { protocol: 'udp', port: 67, service: 'DHCP' },
  { protocol: 'udp', port: 547, service: 'DHCPv6' },
  { protocol: 'udp', port: 53, service: 'DNS' },
] as const;

/** Who has the ports of DHCP and DNS on this host, on whatever address or device. Reads every process: slow. */
export const servicePortHolders = (): ServicePortHolder[] =>
  PORTS.flatMap(({ protocol, port, service }) =>
    [...portHolders({ protocol, port })].map(({ pid, command }) => ({
      text: `UDP port ${port} (${service}) is held by ${command} (pid ${pid})`,
      isOurs: isOurs(pid),
    })),
  );

function isOurs(pid: number): boolean {
  try {
    const args = readFileSync(`/proc/${pid}/cmdline`, 'utf8');
    return /--conf-file=\S*\/dnsmasq\/[^/]+\/conf/.test(args.replaceAll('\0', ' '));
  } catch {
    return false;
  }
}
