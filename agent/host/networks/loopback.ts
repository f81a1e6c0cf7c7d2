import { InterfaceAddress } from '#protocol/address.ts';

/** `lo`, of any namespace: LOOPBACK_IFINDEX of include/net/flow.h. */
export const LOOPBACK = { index: 1, name: 'lo' } as const;

/** With its whole prefix on `lo`, every address of the subnet would answer inside. */
export function hostAddress(text: string): InterfaceAddress {
  const { address } = InterfaceAddress.parse(text);
  return InterfaceAddress.parse(`${address.toString()}/${address.family === 4 ? 32 : 128}`);
}
