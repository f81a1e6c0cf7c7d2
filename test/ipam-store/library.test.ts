import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { compareVersions, librarySource } from '#ipam-store/library.ts';
import { freePort } from '#test/support/servers.ts';
import { put, until, VOLT0 } from './fixture.ts';
import {
  beat,
  libraryOf,
  loadedVersion,
  nextMajor,
  stateOf,
  useOpening,
  VERSION,
} from './opening.ts';

const { server, ledgerOf, connecting, fileWith } = useOpening();

// A name of two files would be the later one's in all that follow.
test('no name is that of two files of functions', () => {
  const folder = new URL('../../ipam-store/functions/', import.meta.url);
  const names = readdirSync(folder).flatMap((file) => {
    const text = readFileSync(new URL(file, folder), 'utf8');
    return [...text.matchAll(/^local (?:function )?(\w+)/gm)].map(([, name]) => name);
  });
  expect(names.length).toBeGreaterThan(100);
  expect(names.filter((name, n) => names.indexOf(name) !== n)).toEqual([]);
});

describe('an agent whose user may load', () => {
  test('loads the library where it is missing', async () => {
    const { redis, raw } = await server();
    await ledgerOf(redis.url);
    expect(await loadedVersion(raw)).toBe(VERSION);
  });

  test('replaces an older one', async () => {
    const { redis, raw } = await server();
    await raw.function('LOAD', libraryOf('0.9'));
    await ledgerOf(redis.url);
    expect(await loadedVersion(raw)).toBe(VERSION);
  });

  test('uses a newer one as it is', async () => {
    const { redis, raw } = await server();
    await raw.function('LOAD', libraryOf('1.999'));
    const ledger = await ledgerOf(redis.url);
    expect(await loadedVersion(raw)).toBe('1.999');
    await put(ledger, VOLT0);
  });

  test('does nothing where the next major is, until that is gone', async () => {
    const { redis, raw } = await server();
    await raw.function('LOAD', nextMajor('2.3'));
    const { ledger } = connecting(redis.url);
    await until(() => stateOf(ledger) === 'incompatible');
    expect(ledger.status.reason).toBe(
      `the ledger is of version 2.3, which needs a newer agent than this, of ${VERSION}`,
    );
    await expect(ledger.getNetwork('volt0')).rejects.toMatchObject({
      code: 'STORE_VERSION',
      retryable: false,
    });
    await raw.function('DELETE', 'volt2');
    await until(() => stateOf(ledger) === 'ready');
  });

  test('finds the next major on reconnect', async () => {
    const { redis, raw } = await server();
    const ledger = await ledgerOf(redis.url);
    await raw.function('LOAD', nextMajor('2.0'));
    await raw.call('CLIENT', 'KILL', 'TYPE', 'normal');
    await until(() => stateOf(ledger) === 'incompatible');
    expect(ledger.status.reason).toContain('2.0');
  });

  test('replaces an older one that it finds on reconnect', async () => {
    const { redis, raw } = await server();
    const { ledger, seen } = connecting(redis.url);
    await until(() => stateOf(ledger) === 'ready');
    await raw.function('LOAD', 'REPLACE', libraryOf('0.9'));
    await raw.call('CLIENT', 'KILL', 'TYPE', 'normal');
    await until(() => seen.length === 3);
    expect(stateOf(ledger)).toBe('ready');
    expect(await loadedVersion(raw)).toBe(VERSION);
  });

  test('puts its library back where an older agent replaced it at the same time', async () => {
    const { redis, raw } = await server();
    await raw.function('LOAD', libraryOf('0.8'));
    await ledgerOf(redis.url);
    await raw.function('LOAD', 'REPLACE', libraryOf('0.9'));
    while ((await loadedVersion(raw)) !== VERSION) await sleep(20);
  });

  test('is not alone: many that start together load it once', async () => {
    const { redis, raw } = await server();
    await Promise.all(Array.from({ length: 8 }, () => ledgerOf(redis.url)));
    expect(await loadedVersion(raw)).toBe(VERSION);
  });
});

describe('an emptied server', () => {
  test('gets the library back within the call that misses it', async () => {
    const { redis, raw } = await server();
    const ledger = await ledgerOf(redis.url);
    await raw.flushall();
    await raw.function('FLUSH');
    await beat(ledger);
    expect((await put(ledger, VOLT0)).revision).toBe(1);
  });

  test('gets it back also from many calls at once', async () => {
    const { redis, raw } = await server();
    const ledger = await ledgerOf(redis.url);
    await raw.function('FLUSH');
    const calls = Array.from({ length: 200 }, () => ledger.getLease('one'));
    expect(new Set(await Promise.all(calls))).toEqual(new Set([null]));
  });

  test('that was restarted without persistence gets it back on reconnect', async () => {
    const { redis, raw } = await server();
    const ledger = await ledgerOf(redis.url);
    await redis.kill();
    await until(() => stateOf(ledger) === 'unavailable');
    await redis.restart();
    await until(() => stateOf(ledger) === 'ready');
    expect(await loadedVersion(raw)).toBe(VERSION);
  });

  test('waits for an operator where the user may not load, and is used as soon as it has the library', async () => {
    const { redis, raw } = await server();
    await raw.call('ACL', 'SETUSER', 'agent', 'on', '>secret', '~*', '+@all', '-function|load');
    await raw.function('LOAD', librarySource());
    const passwordFile = fileWith('secret\n');
    const ledger = await ledgerOf(redis.url, { username: 'agent', passwordFile });
    await raw.function('FLUSH');
    await expect(ledger.getNetwork('volt0')).rejects.toMatchObject({
      code: 'STORE_UNAVAILABLE',
      retryable: true,
      details: { sent: false },
    });
    expect(ledger.status).toEqual({
      state: 'incompatible',
      reason: expect.stringMatching(
        /library is missing.*loading it failed.*NOPERM.*"voltnet ledger install"/,
      ),
    });
    await raw.function('LOAD', librarySource());
    await until(() => stateOf(ledger) === 'ready');
    expect(await ledger.getLease('one')).toBeNull();
  });

  test('with an older library waits for the newer one', async () => {
    const { redis, raw } = await server();
    await raw.call('ACL', 'SETUSER', 'agent', 'on', 'nopass', '~*', '+@all', '-function|load');
    await raw.function('LOAD', libraryOf('0.9'));
    const passwordFile = fileWith('any');
    const { ledger } = connecting(redis.url, { username: 'agent', passwordFile });
    await until(() => stateOf(ledger) === 'incompatible');
    expect(ledger.status.reason).toContain(`the function library is 0.9, ${VERSION} is needed`);
    await raw.function('LOAD', 'REPLACE', libraryOf('1.777'));
    await until(() => stateOf(ledger) === 'ready');
  });
});

describe('voltnet ledger install', () => {
  const voltnet = fileURLToPath(new URL('../../deploy/bin/voltnet', import.meta.url));
  const install = (...words: string[]) =>
    spawnSync(voltnet, ['--json', 'ledger', 'install', ...words], {
      encoding: 'utf8',
      env: { PATH: process.env['PATH'] },
    });

  test('loads the library as a user who may, says what was there, and never downgrades', async () => {
    const { redis, raw } = await server();
    await raw.call('ACL', 'SETUSER', 'admin', 'on', '>secret', '+fcall_ro', '+function', '+info');
    const admin = ['--username', 'admin', '--password-file', fileWith('secret\n')];
    const at = redis.url.replace('redis://', '').replace(/\/.*/, '');
    const versions = [
      [libraryOf('0.9'), '0.9', VERSION],
      [libraryOf('1.999'), '1.999', '1.999'],
    ] as const;
    const first = install('--redis', redis.url, ...admin);
    expect(first.stderr).toBe('');
    expect(JSON.parse(first.stdout)).toEqual({
      installed: [{ server: at, before: null, after: VERSION }],
    });
    for (const [library, before, after] of versions) {
      await raw.function('LOAD', 'REPLACE', library);
      expect(JSON.parse(install('--redis', redis.url, ...admin).stdout)).toEqual({
        installed: [{ server: at, before, after }],
      });
      expect(await loadedVersion(raw)).toBe(after);
    }
  });

  test('names what is in its way: no server, a user who may not, the next major, a wrong setting', async () => {
    const { redis, raw } = await server();
    const refusal = (words: string[]): unknown => {
      const { status, stderr } = install(...words);
      const { error } = JSON.parse(stderr) as { error: { code: string; message: string } };
      return [status, error.code, error.message];
    };
    expect(refusal(['--redis', 'redis://127.0.0.1:1'])).toEqual([
      6,
      'STORE_UNAVAILABLE',
      expect.stringContaining('ECONNREFUSED'),
    ]);
    await raw.call('ACL', 'SETUSER', 'agent', 'on', 'nopass', '+fcall_ro', '+info');
    const agent = ['--username', 'agent', '--password-file', fileWith('any')];
    expect(refusal(['--redis', redis.url, ...agent])).toEqual([
      6,
      'STORE_UNAVAILABLE',
      expect.stringMatching(/library is missing.*NOPERM/),
    ]);
    await raw.function('LOAD', nextMajor('2.3'));
    expect(refusal(['--redis', redis.url])).toEqual([
      1,
      'STORE_VERSION',
      expect.stringContaining('of version 2.3'),
    ]);
    expect(refusal(['--redis', 'http://127.0.0.1:1'])).toEqual([
      2,
      'INVALID_REQUEST',
      expect.stringContaining('redis.url: must begin with'),
    ]);
  });
});

test('a server that wants a password says which settings have it', async () => {
  const { redis, raw } = await server();
  await raw.config('SET', 'requirepass', 'secret');
  const { ledger } = connecting(redis.url);
  await until(() => stateOf(ledger) === 'unavailable' || stateOf(ledger) === 'incompatible');
  expect(ledger.status.reason).toMatch(/NOAUTH.*\(set redis\.username and redis\.passwordFile\)/);
});

test('a server that is none of ours to use is named for what it is', async () => {
  // By itself Redis takes its port + 10,000 for the cluster, which may be that of an outgoing connection.
  const bus = String(await freePort());
  const { redis } = await server('--cluster-enabled', 'yes', '--cluster-port', bus);
  const { ledger } = connecting(redis.url);
  await until(() => stateOf(ledger) === 'incompatible');
  expect(ledger.status.reason).toBe('the server is of a cluster, and redis.mode is "single"');
});

test.each([
  ['1.0', '1.0', 0],
  ['1.9', '1.10', -1],
  ['2.0', '1.99', 1],
])('version %s beside %s', (a, b, sign) => {
  expect(Math.sign(compareVersions(a, b))).toBe(sign);
});
