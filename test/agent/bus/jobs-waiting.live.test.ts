import { expect, test } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { startStack } from '../../support/stack.ts';

const WIDE = { network: 'volt0', subnet: '10.42.0.0/16', gateway: '10.42.0.1' };
const FULL = {
  network: 'full',
  subnet: '10.43.0.0/24',
  gateway: '10.43.0.1',
  pool: { start: '10.43.0.2', end: '10.43.0.2' },
};
/** More than may be under way at once. */
const WAITING = 300;

const vm = (id: string, network: string): AttachRequest => ({
  id,
  workload: `vm-${id}`,
  kind: 'vm',
  network,
});

test('a job does not wait for hundreds that cannot be done yet', async () => {
  await using stack = await startStack({ networks: [WIDE, FULL] });
  const { client, host } = stack;
  await until('jobs are taken', async () => (await stack.agent.health())['jobs'] === 'ready');
  await client.attach(host, vm('only', 'full'));
  for (let n = 0; n < WAITING; n += 1) await client.submitAttach(host, vm(`waits-${n}`, 'full'));
  await client.submitAttach(host, vm('neighbour', 'volt0'));
  await until('it is done', async () => {
    const { attachment } = await client.get(host, { id: 'neighbour' });
    return attachment.state === 'attached';
  });
  const manager = await stack.connection.jetstreamManager();
  const { state } = await manager.streams.info('VOLT_NET_JOBS');
  expect(state.messages).toBeGreaterThanOrEqual(WAITING);
});
