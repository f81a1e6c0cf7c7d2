import { expect, test } from 'vitest';
import { createAuthority } from '#test/support/certificates.ts';
import { startRedis } from '#test/support/servers.ts';
import { put, until, VOLT0 } from './fixture.ts';
import { stateOf, useOpening } from './opening.ts';

const { atEnd, connecting, ledgerOf } = useOpening();

async function secured() {
  const authority = createAuthority();
  atEnd(() => authority[Symbol.dispose]());
  const redis = await startRedis({ tls: authority.certificates });
  atEnd(() => redis.stop());
  return { authority, redis };
}

test('a ledger behind TLS that asks for certificates', async () => {
  const { authority, redis } = await secured();
  const ledger = await ledgerOf(redis.url, { tls: authority.issue('agent') });
  await put(ledger, VOLT0);
});

test('a server of another authority is not talked to', async () => {
  const { redis } = await secured();
  const stranger = createAuthority();
  atEnd(() => stranger[Symbol.dispose]());
  const { ledger } = connecting(redis.url, { tls: stranger.certificates });
  await until(() => stateOf(ledger) === 'unavailable');
  expect(ledger.status.reason).toMatch(/certificate/);
  await expect(put(ledger, VOLT0)).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE' });
});
