import type { Redis } from 'ioredis';
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import type { Ledger, LeaseRequest, NetworkRecord } from '#ipam-store/ledger.ts';
import { librarySource } from '#ipam-store/library.ts';
import {
  askFor,
  bare,
  enrol,
  HOSTS,
  openLedger,
  put,
  small,
  type Store,
  until,
} from './fixture.ts';
import { mutated, type Patch } from './mutants.ts';

/** A ledger with one library, the true one or a mistaken one, and nothing in it yet. */
export interface World {
  readonly raw: Redis;
  readonly ledger: Ledger;
  /** The ledger as another client sees it. */
  other(): Promise<Ledger>;
  /** The hosts say what they hold: nothing that the ledger does not know. */
  enrol(): Promise<void>;
  /** What a restart does to the library: its memory is gone. */
  forget(): Promise<void>;
  /** Redis restarts, with all that it held. */
  restart(): Promise<void>;
}

export interface Mistake {
  /** Who made it. */
  readonly seenAt: string;
  /** Fails by an AssertionError where the mistake shows. */
  readonly scenario: (world: World) => Promise<void>;
  /** Ways to make it, and what the failure then says. */
  readonly mutants: Readonly<Record<string, { patches: readonly Patch[]; shows: RegExp }>>;
}

/** Tests that a mistake is not made, and that the test would tell. */
export function mistake(store: Store, title: string, { seenAt, scenario, mutants }: Mistake): void {
  describe(`${title} (${seenAt})`, () => {
    test('is not made', async () => {
      await inWorld(store, librarySource(), scenario);
    });
    test.each(Object.entries(mutants))('shows when it is: %s', async (_, { patches, shows }) => {
      const failure: unknown = await inWorld(store, mutated(patches), scenario).then(
        () => new Error('nobody noticed'),
        (error: unknown) => error,
      );
      if (!(failure instanceof assert.AssertionError)) throw failure;
      expect(failure.message).toMatch(shows);
    });
  });
}

async function inWorld(
  store: Store,
  source: string,
  scenario: (world: World) => Promise<void>,
): Promise<void> {
  const { raw, server } = store;
  await raw.flushall();
  await raw.call('FUNCTION', 'LOAD', 'REPLACE', source);
  const ledgers: Ledger[] = [];
  const open = async (): Promise<Ledger> => {
    const ledger = await openLedger(server.url);
    ledgers.push(ledger);
    return ledger;
  };
  const ledger = await open();
  await enrol(ledger, ...HOSTS);
  try {
    await scenario({
      raw,
      ledger,
      other: open,
      forget: async () => {
        await raw.call('FUNCTION', 'LOAD', 'REPLACE', source);
      },
      enrol: () => enrol(ledger, ...HOSTS),
      restart: async () => {
        await server.restart();
        await until(() => raw.status === 'ready');
        // A client may not have noticed yet that its connection is gone: what counts is an answer.
        await insist(() => enrol(ledger, ...HOSTS));
        for (const one of [store.ledger, ...ledgers]) await insist(() => one.getNetwork('none'));
      },
    });
  } finally {
    for (const one of ledgers) await one.close();
    await raw.call('FUNCTION', 'LOAD', 'REPLACE', librarySource());
  }
}

/** Asks again for as long as Redis is not there. */
async function insist(ask: () => Promise<unknown>): Promise<void> {
  const end = Date.now() + 8_000;
  for (;;) {
    try {
      await ask();
      return;
    } catch (error) {
      const away = error instanceof VoltError && error.code === 'STORE_UNAVAILABLE';
      if (!away || Date.now() > end) throw error;
    }
    await sleep(10);
  }
}

/** A network of five addresses, .2 to .6. */
export const five = (world: World, keys: object = {}): Promise<NetworkRecord> =>
  put(world.ledger, small({ reuseDelaySeconds: 0, ...keys }));

/** The address, or the code of the error. */
export async function attempt(
  ledger: Ledger,
  record: NetworkRecord,
  id: string,
  more: Partial<LeaseRequest> = {},
): Promise<string> {
  const answer = ledger.acquire(askFor(record, id, more));
  return codeOr(answer.then(({ lease }) => bare(lease)));
}

/** What a call answers, or the code of its error. */
export function codeOr(answer: Promise<string>): Promise<string> {
  return answer.catch((error: unknown) => {
    if (error instanceof Error && 'code' in error) return String(error.code);
    throw error;
  });
}
