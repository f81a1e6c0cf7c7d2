import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Lease, Ledger } from '#ipam-store/ledger.ts';
import { VoltError } from '#protocol/errors.ts';
import { askFor, bare, HOSTS, openLedger, put, useStore, owned } from './fixture.ts';

const store = useStore();
const CLIENTS = 8;
const ledgers: Ledger[] = [];

beforeAll(async () => {
  for (let n = 0; n < CLIENTS; n += 1) ledgers.push(await openLedger(store.server.url));
});
afterAll(async () => {
  for (const ledger of ledgers) await ledger.close();
});

const NET = { network: 'n', subnet: '10.9.0.0/22', reuseDelaySeconds: 0 };
const POOL_SIZE = 1022;

describe('many clients at once', () => {
  test('never get one address twice, and get every address there is', async () => {
    const record = await put(store.ledger, NET);
    const leases: Lease[] = [];
    const errors: VoltError[] = [];
    const attempts = Array.from({ length: POOL_SIZE + 100 }, async (_, n) => {
      const ledger = ledgers[n % CLIENTS] ?? store.ledger;
      try {
        const host = `h${1 + (n % HOSTS.length)}`;
        leases.push((await ledger.acquire(askFor(record, `n${n}`, { host }))).lease);
      } catch (error) {
        if (!(error instanceof VoltError)) throw error;
        errors.push(error);
      }
    });
    await Promise.all(attempts);
    expect(errors).toHaveLength(100);
    expect(new Set(errors.map(({ code }) => code))).toEqual(new Set(['POOL_EXHAUSTED']));
    expect(new Set(leases.map(bare)).size).toBe(POOL_SIZE);
    expect(new Set(leases.map(({ generation }) => generation)).size).toBe(POOL_SIZE);
  });

  test('that ask for one id get one lease', async () => {
    const record = await put(store.ledger, NET);
    const answers = await Promise.all(
      Array.from({ length: 64 }, (_, n) =>
        (ledgers[n % CLIENTS] ?? store.ledger).acquire(askFor(record, 'one')),
      ),
    );
    expect(answers.filter(({ created }) => created)).toHaveLength(1);
    expect(new Set(answers.map(({ lease }) => `${bare(lease)} ${lease.generation}`)).size).toBe(1);
  });

  test('that put one network make it once', async () => {
    const made = await Promise.all(
      ledgers.map((ledger, n) =>
        put(ledger, { ...NET, mtu: 1400 + (n % 2) }).then(
          () => 'put',
          (error: unknown) => (error instanceof VoltError ? error.code : String(error)),
        ),
      ),
    );
    expect(new Set(made)).toEqual(new Set(['put', 'NETWORK_CONFLICT']));
  });

  test('come and go, and at no time do two hold one address', async () => {
    const record = await put(store.ledger, {
      ...NET,
      subnet: '10.9.0.0/28',
      reservations: { 'vm-w0-1': '10.9.0.14' },
    });
    const holders = new Map<string, string>();
    let grants = 0;
    const work = ledgers.map(async (ledger, w) => {
      for (let round = 0; round < 120; round += 1) {
        const id = `w${w}-${round % 3}`;
        const host = `h${1 + (w % HOSTS.length)}`;
        try {
          const { lease } = await ledger.acquire(askFor(record, id, { host }));
          const address = bare(lease);
          expect(holders.get(address) ?? id).toBe(id);
          holders.set(address, id);
          grants += 1;
          expect(address !== '10.9.0.14' || id === 'w0-1').toBe(true);
        } catch (error) {
          if (!(error instanceof VoltError) || error.code !== 'POOL_EXHAUSTED') throw error;
        }
        const lease = await ledger.getLease(`w${w}-${(round + 1) % 3}`);
        if (lease === null) continue;
        holders.delete(bare(lease));
        await ledger.release({ ...owned(lease), cool: round % 2 === 0 });
      }
    });
    await Promise.all(work);
    expect(grants).toBeGreaterThan(CLIENTS * 40);
    const { leases } = await store.ledger.listLeases({});
    for (const lease of leases) await store.ledger.release({ ...owned(lease), cool: true });
    const usage = (await store.ledger.getNetwork('n'))?.usage;
    expect(usage).toEqual({ size: 14, used: 0, free: 13, reserved: 1, cooling: 0, suspect: 0 });
  });
});
