import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

export interface GuestOptions {
  /** The workload's MAC, as the attach answered it; `{mac}` where `voltnet exec` fills it in. */
  readonly mac: string;
  readonly queues: number;
  /** With prefix length; without it the guest asks by DHCP. */
  readonly address?: string;
  readonly gateway?: string;
  /** Pinged three times once the guest is up. */
  readonly ping?: string;
  /** The guest waits for a router advertisement. */
  readonly ra?: boolean;
  /** Looked up in DNS once the guest is up. */
  readonly lookup?: string;
  /** The guest powers itself off after so long. */
  readonly seconds?: number;
}

/** Folder with `vmlinuz` and `initrd`; prepares them when they are not there. */
export const guestFolder = (): string =>
  execFileSync('sh', [fileURLToPath(new URL('prepare.sh', import.meta.url))], {
    encoding: 'utf8',
  }).trim();

/**
 * The command line of a guest whose NIC is a TAP given by descriptor: `{fd}` and `{fds}` are what
 * `voltnet exec` replaces. The serial console is standard output; `GUEST READY` on it says that the
 * address is set.
 */
export function qemuCommand(options: GuestOptions, folder = guestFolder()): string[] {
  const { mac, queues, address, gateway, ping, ra = false, lookup, seconds } = options;
  const settings = [
    'console=ttyS0',
    'quiet',
    'rdinit=/init',
    'reboot=t',
    address === undefined ? 'volt.dhcp=1' : `volt.address=${address}`,
    ...(gateway === undefined ? [] : [`volt.gateway=${gateway}`]),
    ...(ping === undefined ? [] : [`volt.ping=${ping}`]),
    ...(ra ? ['volt.ra=1'] : []),
    ...(lookup === undefined ? [] : [`volt.lookup=${lookup}`]),
    ...(seconds === undefined ? [] : [`volt.seconds=${seconds}`]),
  ];
  const netdev = queues === 1 ? 'tap,id=n0,fd={fd}' : 'tap,id=n0,fds={fds}';
  const nic = [`virtio-net-pci,netdev=n0,mac=${mac}`];
  if (queues > 1) nic.push('mq=on', `vectors=${2 * queues + 2}`);
  return [
    'qemu-system-x86_64',
    ...['-accel', 'tcg', '-cpu', 'max', '-M', 'q35', '-m', '256', '-smp', String(queues)],
    ...['-nographic', '-nodefaults', '-no-reboot', '-serial', 'stdio', '-monitor', 'none'],
    ...['-kernel', `${folder}/vmlinuz`, '-initrd', `${folder}/initrd`],
    ...['-append', settings.join(' ')],
    ...['-netdev', netdev, '-device', nic.join(',')],
  ];
}
