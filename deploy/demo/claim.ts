import { localAnswerSchemas } from '#protocol/local-socket.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { requestSeqpacket } from '#native/unix.ts';
import { RUNTIME_DIR } from './world.ts';

/** A TAP as the agent's local socket hands it over. The descriptor is the caller's. */
export interface ClaimedTap {
  readonly descriptor: Descriptor;
  readonly name: string;
  readonly mac: string;
  readonly vnetHdrSize: number;
}

/** What a VMM does: one packet of JSON to the agent's socket, the TAP's descriptor beside the answer. */
export async function claimTap(id: string): Promise<ClaimedTap> {
  const request = Buffer.from(JSON.stringify({ op: 'claim', id }));
  const { bytes, descriptors } = await requestSeqpacket(`${RUNTIME_DIR}/agent.sock`, request);
  const text = Buffer.from(bytes).toString('utf8');
  const [descriptor] = descriptors;
  if (descriptor === undefined) throw new Error(`claim of ${id}: ${text}`);
  const { mac, device } = localAnswerSchemas.claim.parse(JSON.parse(text)).attachment;
  if (device === null) throw new Error(`${id} has no device`);
  return { descriptor, name: device.name, mac, vnetHdrSize: device.vnetHdrSize ?? 0 };
}
