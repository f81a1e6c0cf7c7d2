import fc from 'fast-check';
import type { Redis } from 'ioredis';
import assert from 'node:assert/strict';
import { expect, test } from 'vitest';
import type { Ledger, NetworkRecord } from '#ipam-store/ledger.ts';
import { VoltError } from '#protocol/errors.ts';
import { type Network, parseNetwork } from '#protocol/network.ts';
import { fromHex } from '#ipam-store/pool.ts';
import { bare, contents, ROOT, useStore } from './fixture.ts';
import { type Ask, Model, type Outcome, poolOf } from './model.ts';

const store = useStore();

// Two networks that change, overlap each other at times, and forget at once or never what was released.
const DEFINITIONS: Record<string, Network[]> = {
  a: [
    { subnet: '10.0.0.0/29' },
    { subnet: '10.0.0.0/29', gateway: '10.0.0.1', reservations: { w0: '10.0.0.2' } },
    { subnet: '10.0.0.0/28', exclude: ['10.0.0.3', '10.0.0.8/30'] },
    { subnet: '10.0.0.8/29', pool: { start: '10.0.0.10', end: '10.0.0.12' } },
  ].map((keys) => parseNetwork({ network: 'a', reuseDelaySeconds: 0, ...keys })),
  b: [
    { subnet: '10.0.0.8/29' },
    { subnet: '10.0.0.8/29', reservations: { w1: '10.0.0.9', w2: '10.0.0.13' } },
    { subnet: '10.0.0.8/30' },
    { subnet: '10.0.0.0/28', pool: { start: '10.0.0.2', end: '10.0.0.9' }, gateway: '10.0.0.15' },
  ].map((keys) => {
    const { gateway, ...rest } = { gateway: undefined, ...keys };
    const fits = gateway === undefined ? rest : { ...rest, gateway: '10.0.0.14' };
    return parseNetwork({ network: 'b', reuseDelaySeconds: 3_600, ...fits });
  }),
};

type Step =
  | { readonly do: 'put'; readonly name: string; readonly variant: number }
  | { readonly do: 'delete'; readonly name: string }
  | { readonly do: 'acquire'; readonly name: string; readonly ask: Ask }
  | { readonly do: 'release'; readonly id: string; readonly cool: boolean; readonly late: boolean };

const name = fc.constantFrom('a', 'b');
const id = fc.integer({ min: 0, max: 9 }).map((n) => `i${n}`);
const ask: fc.Arbitrary<Ask> = fc
  .record({
    id,
    workload: fc.integer({ min: 0, max: 3 }).map((n) => `w${n}`),
    host: fc.constantFrom('h1', 'h1', 'h1', 'h2'),
    asked: fc.option(fc.integer({ min: 0, max: 16 }), { nil: undefined, freq: 3 }),
  })
  .map(({ asked, ...rest }) =>
    asked === undefined ? rest : { ...rest, asked: `10.0.0.${asked}` },
  );
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 2, arbitrary: fc.record({ do: fc.constant('put'), name, variant: fc.nat(3) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('delete'), name }) },
  { weight: 8, arbitrary: fc.record({ do: fc.constant('acquire'), name, ask }) },
  {
    weight: 5,
    arbitrary: fc.record({
      do: fc.constant('release'),
      id,
      cool: fc.boolean(),
      late: fc.boolean(),
    }),
  },
);

class Run {
  readonly #model = new Model();
  readonly #records = new Map<string, NetworkRecord>();
  readonly #generations = new Map<string, number>();
  readonly #ledger: Ledger;
  readonly #raw: Redis;
  #highest = 0;

  constructor(ledger: Ledger, raw: Redis) {
    this.#ledger = ledger;
    this.#raw = raw;
  }

  async take(taken: Step): Promise<void> {
    const before = await contents(this.#raw);
    const error = await this.#do(taken);
    if (error !== undefined) {
      assert.deepEqual(await contents(this.#raw), before);
      return;
    }
    for (const network of this.#model.networks.values()) {
      const stored = await this.#ledger.getNetwork(network.network);
      assert.deepEqual(stored?.usage, { ...this.#model.usage(network), suspect: 0 });
      assert.deepEqual(await pooled(this.#raw, network.network), [...poolOf(network)].toSorted());
    }
  }

  async #do(taken: Step): Promise<string | undefined> {
    switch (taken.do) {
      case 'put':
        return this.#put(taken.name, taken.variant);
      case 'delete': {
        const { error } = this.#model.delete(taken.name);
        await this.#expect(error, () => this.#ledger.deleteNetwork(taken.name));
        return error;
      }
      case 'acquire':
        return this.#acquire(taken.name, taken.ask);
      case 'release':
        return this.#release(taken);
    }
  }

  async #put(network: string, variant: number): Promise<string | undefined> {
    const definition = DEFINITIONS[network]?.[variant];
    if (definition === undefined) throw new Error('no such definition');
    const known = this.#model.networks.has(network) ? this.#records.get(network) : undefined;
    const revision = known?.revision;
    const { error } = this.#model.put(definition);
    const record = await this.#expect(error, () => this.#ledger.putNetwork(definition, revision));
    if (record !== undefined) this.#records.set(network, record);
    return error;
  }

  async #acquire(network: string, asked: Ask): Promise<string | undefined> {
    const record = this.#records.get(network);
    if (record === undefined) return undefined;
    const { asked: address, ...rest } = asked;
    const expected: Outcome = this.#model.acquire(record.network, asked);
    const answer = await this.#expect(expected.error, () =>
      this.#ledger.acquire({
        ...rest,
        kind: 'vm',
        network: record.network,
        revision: record.revision,
        bootId: 'boot',
        ...(address !== undefined && { addresses: [address] }),
      }),
    );
    if (answer === undefined) return expected.error;
    const { lease, created } = answer;
    assert(expected.oneOf?.includes(bare(lease)), `${bare(lease)} of ${String(expected.oneOf)}`);
    assert.equal(created, !this.#model.leases.has(asked.id));
    if (created) {
      assert(lease.generation > this.#highest);
      this.#highest = lease.generation;
      this.#model.granted(record.network, asked, bare(lease));
      this.#generations.set(asked.id, lease.generation);
    }
    assert.equal(lease.generation, this.#generations.get(asked.id));
    return undefined;
  }

  async #release({ id: of, cool, late }: Step & { do: 'release' }): Promise<string | undefined> {
    const held = this.#model.leases.get(of);
    const generation = (this.#generations.get(of) ?? 2) - (late ? 1 : 0);
    const error = held !== undefined && late ? 'STALE_GENERATION' : undefined;
    const host = held?.host ?? 'h1';
    const answer = await this.#expect(error, () =>
      this.#ledger.release({ id: of, generation, host, cool }),
    );
    const outcome = held === undefined ? 'absent' : 'released';
    assert.equal(answer, error === undefined ? outcome : undefined);
    if (answer === 'released') this.#model.released(of, cool);
    return error;
  }

  /** Undefined where the call was refused as expected. */
  async #expect<T>(code: string | undefined, call: () => Promise<T>): Promise<T | undefined> {
    try {
      const answer = await call();
      assert.equal(code, undefined);
      return answer;
    } catch (error) {
      if (!(error instanceof VoltError)) throw error;
      assert.equal(error.code, code);
      return undefined;
    }
  }
}

/** Every address that the store has as fresh, free or held within the pool: each once. */
async function pooled(raw: Redis, network: string): Promise<string[]> {
  const key = `${ROOT}:net:${network}`;
  const next = await raw.hget(key, 'next:4');
  const fresh = await raw.zrange(`${key}:4:fresh`, '0', '-1');
  const found = [...(next === null ? [] : [next]), ...fresh].flatMap(expand);
  found.push(...(await raw.zrange(`${key}:4:free`, '0', '-1')));
  const allowed = new Set((await raw.zrange(`${key}:4:allowed`, '0', '-1')).flatMap(expand));
  const held = (await raw.zrange(`${key}:4:held`, '0', '-1')).map((entry) => entry.slice(0, 8));
  found.push(...held.filter((hex) => allowed.has(hex)));
  return found.map((hex) => fromHex(hex).toString()).toSorted();
}

function expand(range: string): string[] {
  const [first = 0, last = 0] = range.split('-').map((hex) => Number.parseInt(hex, 16));
  return Array.from({ length: last - first + 1 }, (_, n) =>
    (first + n).toString(16).padStart(8, '0'),
  );
}

test('does what a plain model does, for any history', { timeout: 60_000 }, async () => {
  const history = fc.array(step, { minLength: 20, maxLength: 80, size: 'max' });
  const property = fc.asyncProperty(history, async (steps) => {
    await store.raw.flushall();
    const run = new Run(store.ledger, store.raw);
    await run.take({ do: 'put', name: 'a', variant: 0 });
    await run.take({ do: 'put', name: 'b', variant: 0 });
    for (const one of steps) await run.take(one);
  });
  await expect(fc.assert(property, { numRuns: 24 })).resolves.toBeUndefined();
});
