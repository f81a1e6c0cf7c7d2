import type { Attachment } from '#protocol/attachment.ts';
import type { Link } from '#native/link.ts';
import type { TokenBucket } from '#native/traffic.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import type { Kernel } from '../kernel.ts';
import { closeToIpv6 } from './tap.ts';
import { DEVICE_GROUP, isMadeByAgent, isStill, isTagOf } from '../ownership.ts';

export type Bandwidth = Attachment['bandwidth'];

/** A device of an attachment on the host, with its tag. */
interface LimitedDevice {
  readonly index: number;
  readonly name: string;
  readonly alias: string;
}

// Burst (what may pass at once) and queue (what may wait), as the traffic of 1/50 and 1/20 of a second. With a smaller
// burst, timers of 4 ms (CONFIG_HZ=250) cannot fill a fast link; with a larger burst or queue, the limit takes effect
// late. The burst is at least two full frames, so that each frame passes even the slowest limit.
const BURST_SECONDS = 0.02;
const QUEUE_SECONDS = 0.05;
const LEAST_BURST_BYTES = 3_200;
const LEAST_QUEUE_BYTES = 16_000;
const MAX_BYTES = 0xffff_ffff;
const BITS_PER_BYTE = 8;

/** The name of the IFB of a device. No other interface of the host has such a name by chance. */
export const ifbName = (ifindex: number): string => `ifb-${ifindex}`;

/**
 * Limits the bandwidth of a workload, on the host's end of its veth pair or on its TAP. Frames to the workload
 * (`ingress`, as the workload sees it) wait in a token bucket. Frames from the workload (`egress`) are redirected
 * through an IFB that has a token bucket, and back. The port filter, which is on the bridge, sees the port as before. A
 * call with other limits changes them in place.
 */
export function limitBandwidth(
  kernel: Kernel,
  device: LimitedDevice,
  { ingressBitsPerSecond, egressBitsPerSecond }: Bandwidth,
): void {
  if (ingressBitsPerSecond === undefined) kernel.traffic.unlimit(device);
  else kernel.traffic.limit(device, bucketOf(ingressBitsPerSecond));
  const found = ownIfb(kernel, device);
  if (egressBitsPerSecond !== undefined) {
    const bucket = bucketOf(egressBitsPerSecond);
    if (found === null) {
      divert(kernel, device, bucket);
      return;
    }
    kernel.traffic.limit(found, bucket);
    if (!found.up) kernel.links.set(found, { up: true });
    if (kernel.traffic.redirectOf(device) === found.index) return;
    kernel.traffic.unredirectIngress(device);
    kernel.traffic.redirectIngress(device, found.index);
    return;
  }
  if (found === null) return;
  kernel.traffic.unredirectIngress(device);
  kernel.links.delete(found);
}

/**
 * The IFB of an attachment, to be deleted together with its device; also one that an interrupted update made. An
 * interrupted attach has no device on record: then the IFB is found by its tag alone.
 */
export function ifbOf(
  kernel: Kernel,
  { id, request }: Pick<AttachmentRecord, 'id' | 'request'>,
  ifindex: number | undefined,
): Link | null {
  if (ifindex === undefined && request.bandwidth === undefined) return null;
  const candidates =
    ifindex === undefined ? kernel.links.list() : [kernel.links.get(ifbName(ifindex))];
  return candidates.find((link) => link?.kind === 'ifb' && isTagOf(link.alias, id)) ?? null;
}

/** The rate, in bits a second, that the kernel stores for a limit: it counts whole bytes. */
export const rateOf = (bitsPerSecond: number): number =>
  Math.ceil(bitsPerSecond / BITS_PER_BYTE) * BITS_PER_BYTE;

/** The IFB of a device. Deletes an IFB that an earlier device left behind under the same index. */
function ownIfb(kernel: Kernel, { index, alias }: LimitedDevice): Link | null {
  const found = kernel.links.get(ifbName(index));
  if (found === null || isStill({ alias }, found)) return found;
  if (found.kind === 'ifb' && isMadeByAgent(found)) kernel.links.delete(found);
  return null;
}

function divert(kernel: Kernel, device: LimitedDevice, bucket: TokenBucket): void {
  const name = ifbName(device.index);
  // There may be a redirect to an IFB that somebody has deleted.
  kernel.traffic.unredirectIngress(device);
  const ifb = kernel.links.createIfb({ name, group: DEVICE_GROUP });
  try {
    kernel.links.set(ifb, { alias: device.alias });
    closeToIpv6(name);
    kernel.traffic.limit(ifb, bucket);
    kernel.links.set(ifb, { up: true });
    kernel.traffic.redirectIngress(device, ifb.index);
  } catch (error) {
    kernel.links.delete(ifb);
    throw error;
  }
}

function bucketOf(bitsPerSecond: number): TokenBucket {
  const bytesPerSecond = bitsPerSecond / BITS_PER_BYTE;
  const burstBytes = Math.max(LEAST_BURST_BYTES, Math.ceil(bytesPerSecond * BURST_SECONDS));
  const queueBytes = Math.max(LEAST_QUEUE_BYTES, Math.ceil(bytesPerSecond * QUEUE_SECONDS));
  return {
    bitsPerSecond,
    burstBytes: Math.min(burstBytes, MAX_BYTES),
    queueBytes: Math.min(burstBytes + queueBytes, MAX_BYTES),
  };
}
