import { requestSeqpacket } from '#native/unix.ts';
import type { RunningAgent } from './agent.ts';

/** What the local socket answered to a claim. */
export interface Claimed {
  readonly body: Record<string, unknown> & { error?: { code: string } };
  readonly fds: readonly number[];
  readonly close: () => void;
}

/** Sends one packet to an agent's local socket, as a VMM does. */
export async function claimFrom(agent: RunningAgent, request: object): Promise<Claimed> {
  const payload = Buffer.from(JSON.stringify(request));
  const { bytes, descriptors } = await requestSeqpacket(agent.socketPath, payload);
  return {
    body: JSON.parse(bytes.toString()) as Claimed['body'],
    fds: descriptors.map(({ fd }) => fd),
    close: () => {
      for (const descriptor of descriptors) descriptor.close();
    },
  };
}
