import { readFileSync } from 'node:fs';

/** The process may not do what an agent does. The message says what to do. */
export class RightsError extends Error {
  override readonly name = 'RightsError';
}

/** linux/capability.h. */
const CAP_NET_ADMIN = 12n;

/** Throws RightsError without CAP_NET_ADMIN (man 7 capabilities), without which nothing can be attached. */
export function checkRights(status = readFileSync('/proc/self/status', 'utf8')): void {
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`);
  if ((effective >> CAP_NET_ADMIN) & 1n) return;
  throw new RightsError(
    'needs CAP_NET_ADMIN: start it as root, or by its systemd unit (deploy/systemd/)',
  );
}
