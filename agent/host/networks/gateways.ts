import type { Link } from '#native/link.ts';

const TAG = 'volt:bridge:';

/** What the alias of a bridge that an agent made says: its network, and the gateways that it may have got of it. */
export interface BridgeTag {
  readonly network: string;
  readonly gateways: readonly string[];
}

/** Undefined for the alias of anything else. */
export function bridgeTagOf({ alias }: Pick<Link, 'alias'>): BridgeTag | undefined {
  if (alias?.startsWith(TAG) !== true) return undefined;
  const [network = '', ...gateways] = alias.slice(TAG.length).split(' ');
  return { network, gateways };
}

export const bridgeTag = (network: string, gateways: readonly string[]): string =>
  [`${TAG}${network}`, ...new Set(gateways)].join(' ');
