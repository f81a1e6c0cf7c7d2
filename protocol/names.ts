import { createHash } from 'node:crypto';

/** Attachment and workload ids. */
export const ID_PATTERN = /^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$/;
/** Networks: short enough to be a device name, so that a bridge can be called like its network. */
export const NETWORK_PATTERN = /^[a-z0-9][a-z0-9_-]{0,14}$/;
/** Host ids: one token of a NATS subject. */
export const HOST_PATTERN = /^[A-Za-z0-9_-]{1,64}$/;
/** RFC 1123 host names: labels of letters, digits and inner hyphens. */
export const HOSTNAME_PATTERN =
  /^(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$/;

/** IFNAMSIZ without the terminating zero (linux/if.h). */
const DEVICE_NAME_BYTES = 15;

export const DEVICE_NAME_PATTERN = /^[A-Za-z0-9_.-]{1,15}$/;
export const NO_DEVICES = ['.', '..', 'all', 'default'];

/**
 * True for what the kernel takes as the name of a device (dev_valid_name) and shells need not quote. `all`
 * and `default` are folders in /proc/sys/net/ipv4/conf: a setting of such a device would be everybody's.
 */
export const isDeviceName = (name: string): boolean =>
  DEVICE_NAME_PATTERN.test(name) && !NO_DEVICES.includes(name);

/** True for names that systemd-networkd's own units match (80-container-*, 80-vm-vt): it would configure them. */
export const isNetworkdName = (name: string): boolean =>
  /^(ve|vb|vz|vt|ns)-/.test(name) || name.startsWith('host0');

const TAP_REST_BYTES = DEVICE_NAME_BYTES - 'tap-'.length;
const VETH_REST_BYTES = DEVICE_NAME_BYTES - 'veth--h'.length;
const HASH_DIGITS = 8;
const HASH_TRIES = 64;

export interface NamedWorkload {
  readonly id: string;
  readonly workload: string;
}

/** `vm-abc123` → `tap-abc123`. Falls back to a hash of the id where that does not fit or is taken. */
export function tapName(named: NamedWorkload, taken: (name: string) => boolean): string {
  for (const rest of rests(named, TAP_REST_BYTES)) {
    const name = `tap-${rest}`;
    if (!taken(name)) return name;
  }
  throw new Error(`no free device name for ${named.id}`);
}

/** `container-xyz` → `veth-xyz-h` on the host, `veth-xyz-c` for the container; both free. */
export function vethNames(
  named: NamedWorkload,
  taken: (name: string) => boolean,
): { host: string; container: string } {
  for (const rest of rests(named, VETH_REST_BYTES)) {
    const names = { host: `veth-${rest}-h`, container: `veth-${rest}-c` };
    if (!taken(names.host) && !taken(names.container)) return names;
  }
  throw new Error(`no free device name for ${named.id}`);
}

function* rests({ id, workload }: NamedWorkload, maxBytes: number): Generator<string> {
  const own = workload.replace(/^(vm|container)-/, '');
  if (own.length <= maxBytes && /^[A-Za-z0-9_-]+$/.test(own)) yield own;
  for (let tries = 0; tries < HASH_TRIES; tries += 1) {
    const seed = tries === 0 ? id : `${id} ${tries}`;
    yield createHash('sha256').update(seed).digest('hex').slice(0, HASH_DIGITS);
  }
}
