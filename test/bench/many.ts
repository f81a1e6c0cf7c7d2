import type { Stack } from '../support/stack.ts';

/** A bridge holds 1,023 ports. */
const PER_BRIDGE = 900;
const IN_FLIGHT = 256;

export interface BenchNetwork {
  readonly network: string;
  readonly subnet: string;
  readonly gateway: string;
}

/** Networks with room for so many attachments. */
export const networksFor = (attachments: number): BenchNetwork[] =>
  Array.from({ length: Math.max(3, Math.ceil(attachments / PER_BRIDGE)) }, (_, n) => ({
    network: `n${n}`,
    subnet: `10.${60 + n}.0.0/22`,
    gateway: `10.${60 + n}.0.1`,
  }));

/** VMs `b0`, `b1` …, spread over the networks. */
export async function attachMany(
  { client, host }: Stack,
  networks: readonly { readonly network: string }[],
  count: number,
): Promise<void> {
  let next = 0;
  const one = async (): Promise<void> => {
    while (next < count) {
      const n = next;
      next += 1;
      const id = `b${n}`;
      const network = networks[n % networks.length]?.network ?? '';
      await client.attach(
        host,
        { id, workload: `vm-${id}`, kind: 'vm', network },
        { timeoutMs: 60_000 },
      );
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, one));
}
