import { UsageError } from './errors.ts';

/** What the placeholders of a command stand for. */
export interface ClaimValues {
  readonly fds: readonly number[];
  readonly mac: string;
  readonly mtu: number;
  readonly ifname: string;
}

/** One word of the command with its placeholders replaced. Other braces belong to the command. */
export function filledIn(word: string, { fds, mac, mtu, ifname }: ClaimValues): string {
  return word.replace(/\{(fd|fds|mac|mtu|ifname)\}/g, (_, name: string) => {
    switch (name) {
      case 'fd':
        if (fds.length !== 1) {
          throw new UsageError(
            `{fd} stands for one descriptor; there are ${fds.length}: use {fds}`,
          );
        }
        return String(fds[0]);
      case 'fds':
        return fds.join(':');
      case 'mac':
        return mac;
      case 'mtu':
        return String(mtu);
      default:
        return ifname;
    }
  });
}
