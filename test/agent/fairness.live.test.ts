import { connect, headers } from 'nats';
import { expect, test } from 'vitest';
import { VoltNetworkClient } from '#protocol/client.ts';
import { startStack } from '../support/stack.ts';

const WIDE = { network: 'volt0', subnet: '10.42.0.0/22', gateway: '10.42.0.1' };
const FLOOD = 400;

test('an orchestrator that attaches one is not kept waiting by another that attaches hundreds', async () => {
  await using stack = await startStack({ networks: [WIDE] });
  const { client, host } = stack;
  const connection = await connect({ servers: stack.nats.url });
  const other = new VoltNetworkClient({ connection, headers });
  const request = (id: string) =>
    ({ id, workload: `vm-${id}`, kind: 'vm', network: 'volt0' }) as const;
  let answered = 0;
  const flood = Array.from({ length: FLOOD }, async (_, n) => {
    await client.attach(host, request(`many-${n}`), { timeoutMs: 30_000 });
    answered += 1;
  });
  await stack.connection.flush();
  await other.attach(host, request('one'), { timeoutMs: 30_000 });
  expect(answered).toBeLessThan(FLOOD / 2);
  await Promise.all(flood);
  await connection.close();
});
