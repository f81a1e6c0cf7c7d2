import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { afterEach } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import { Ledger, type LedgerOptions, type LedgerStatus } from '#ipam-store/ledger.ts';
import { librarySource, libraryVersion } from '#ipam-store/library.ts';
import { type Server, startRedis } from '#test/support/servers.ts';
import { enrol, openLedger, optionsFor } from './fixture.ts';

/** What tests open for themselves; each thing is closed after its test, the last one first. */
export interface Opening {
  readonly atEnd: (close: () => unknown) => void;
  /** A redis-server of the test's own, and a way to look behind the ledger's back. */
  readonly server: (...args: string[]) => Promise<{ redis: Server; raw: Redis }>;
  readonly rawOf: (...args: [url: string] | [port: number]) => Redis;
  /** A ledger that is ready, and grants to h1. */
  readonly ledgerOf: (url: string, more?: Partial<LedgerOptions>) => Promise<Ledger>;
  /** A ledger as it is at the start, and every status that it has had. */
  readonly connecting: (
    url: string,
    more?: Partial<LedgerOptions>,
  ) => { ledger: Ledger; seen: LedgerStatus[] };
  /** Path of a file with this content. */
  readonly fileWith: (content: string) => string;
}

export function useOpening(): Opening {
  const opened: (() => unknown)[] = [];
  afterEach(async () => {
    for (const close of opened.splice(0).toReversed()) await close();
  });
  const atEnd = (close: () => unknown): void => {
    opened.push(close);
  };
  const rawOf: Opening['rawOf'] = (where) => {
    const raw = typeof where === 'string' ? new Redis(where) : new Redis(where, '127.0.0.1');
    raw.on('error', () => {});
    atEnd(() => raw.disconnect());
    return raw;
  };
  return {
    atEnd,
    rawOf,
    server: async (...args) => {
      const redis = await startRedis({ args });
      atEnd(() => redis.stop());
      return { redis, raw: rawOf(redis.url) };
    },
    ledgerOf: async (url, more = {}) => {
      const ledger = await openLedger(url, more);
      atEnd(() => ledger.close());
      // Too few replicas are the concern of the test that wants them.
      await beat(ledger).catch(() => {});
      return ledger;
    },
    connecting: (url, more = {}) => {
      const ledger = new Ledger(optionsFor(url, more));
      const seen: LedgerStatus[] = [];
      ledger.onStatus((status) => seen.push(status));
      atEnd(() => ledger.close());
      ledger.start();
      return { ledger, seen };
    },
    fileWith: (content) => {
      const folder = mkdtempSync(join(tmpdir(), 'volt-test-file-'));
      atEnd(() => rmSync(folder, { recursive: true }));
      const path = join(folder, 'content');
      writeFileSync(path, content);
      return path;
    },
  };
}

/** What an agent does after each connect, and before it acquires anything. */
export const beat = (ledger: Ledger, host = 'h1'): Promise<void> => enrol(ledger, host);

/** Asks as an agent does: again for as long as the answer is that it may succeed later. */
export async function persist<T>(ledger: Ledger, ask: () => Promise<T>): Promise<T> {
  const end = Date.now() + PERSIST_MS;
  for (;;) {
    try {
      await beat(ledger);
      return await ask();
    } catch (error) {
      const later = error instanceof VoltError && error.retryable;
      if (!later || Date.now() > end) throw error;
    }
    await sleep(20);
  }
}

const PERSIST_MS = 20_000;

export const stateOf = ({ status }: Ledger): string => status.state;

/** The version that agents of this checkout load. */
export const VERSION = libraryVersion(librarySource());

/** The library under another version. */
export const libraryOf = (version: string): string =>
  librarySource().replace(`local VERSION = '${VERSION}'`, `local VERSION = '${version}'`);

/** A library of the next major, as far as this one looks at it. */
export const nextMajor = (version: string): string =>
  `#!lua name=volt2\nredis.register_function{function_name='volt2_version', callback=function() return '${version}' end, flags={'no-writes'}}`;

export const loadedVersion = (raw: Redis): Promise<unknown> => raw.fcall_ro('volt1_version', 0);
