import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  HOST_PATTERN,
  HOSTNAME_PATTERN,
  ID_PATTERN,
  isDeviceName,
  isNetworkdName,
  NETWORK_PATTERN,
  tapName,
  vethNames,
} from '#protocol/names.ts';

const nothingTaken = (): boolean => false;

describe('device names', () => {
  test.for([
    ['vm-abc123', 'tap-abc123'],
    ['vm-web', 'tap-web'],
    ['container-db', 'tap-db'],
    ['web', 'tap-web'],
    ['vm-0123456789a', 'tap-0123456789a'],
    ['vm-vm-x', 'tap-vm-x'],
  ])('the TAP of workload %s is %s', ([workload, name]) => {
    expect(tapName({ id: 'att-1', workload: String(workload) }, nothingTaken)).toBe(name);
  });

  test.for([
    ['container-xyz', 'veth-xyz-h', 'veth-xyz-c'],
    ['vm-abc', 'veth-abc-h', 'veth-abc-c'],
    ['container-12345678', 'veth-12345678-h', 'veth-12345678-c'],
  ])('the pair of workload %s is %s and %s', ([workload, host, container]) => {
    const names = vethNames({ id: 'att-1', workload: String(workload) }, nothingTaken);
    expect(names).toEqual({ host, container });
  });

  test.for([
    ['too long', 'vm-0123456789ab'],
    ['with a dot', 'vm-a.b'],
    ['with a colon', 'vm-a:b'],
    ['with nothing after the prefix', 'vm-'],
  ])('a rest %s is replaced by a hash of the attachment id', ([, workload]) => {
    const name = tapName({ id: 'att-1', workload: String(workload) }, nothingTaken);
    expect(name).toMatch(/^tap-[0-9a-f]{8}$/);
    expect(tapName({ id: 'att-2', workload: String(workload) }, nothingTaken)).not.toBe(name);
  });

  test('a name that is taken is replaced too, as often as needed', () => {
    const taken = new Set<string>();
    for (let count = 0; count < 20; count += 1) {
      const name = tapName({ id: 'att-1', workload: 'vm-web' }, (one) => taken.has(one));
      expect(taken.has(name)).toBe(false);
      taken.add(name);
    }
    expect([...taken][0]).toBe('tap-web');
  });

  test('one end taken takes both names of a pair', () => {
    const named = { id: 'att-1', workload: 'container-xyz' };
    const names = vethNames(named, (name) => name === 'veth-xyz-c');
    expect(names.host).toMatch(/^veth-[0-9a-f]{8}-h$/);
    expect(names.container).toBe(names.host.replace(/-h$/, '-c'));
  });

  test('it gives up when all names are taken, instead of looking for ever', () => {
    const named = { id: 'att-1', workload: 'vm-web' };
    expect(() => tapName(named, () => true)).toThrow('no free device name for att-1');
    expect(() => vethNames(named, () => true)).toThrow('no free device name for att-1');
  });

  test('every id and workload get names that the kernel takes and networkd does not claim', () => {
    const id = fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$/);
    fc.assert(
      fc.property(id, id, (attachment, workload) => {
        const named = { id: attachment, workload };
        const { host, container } = vethNames(named, nothingTaken);
        const names = [tapName(named, nothingTaken), host, container];
        expect(names.filter((name) => !isDeviceName(name) || isNetworkdName(name))).toEqual([]);
        expect(new Set(names).size).toBe(3);
      }),
    );
  });
});

describe('patterns', () => {
  test.for([
    ['ids', ID_PATTERN, ['a', 'vm-1', 'A.b_c:d-e', '0', 'x'.repeat(64)]],
    ['networks', NETWORK_PATTERN, ['volt0', '0', 'a_b-c', 'x'.repeat(15)]],
    ['hosts', HOST_PATTERN, ['h1', 'H-1_x', '-', 'host_example_org']],
    ['host names', HOSTNAME_PATTERN, ['web', 'a.b.c', '3com', 'x'.repeat(63), 'A-1.example']],
  ] as const)('%s are taken', ([, pattern, texts]) => {
    expect(texts.filter((text) => !pattern.test(text))).toEqual([]);
  });

  test.for([
    ['ids', ID_PATTERN, ['', '-a', '.a', 'a b', 'ä', 'a\n', 'a/b', 'x'.repeat(65), '__proto__']],
    ['networks', NETWORK_PATTERN, ['', 'Volt0', '-a', '_a', 'a.b', 'x'.repeat(16), 'a\n']],
    ['hosts', HOST_PATTERN, ['', 'a.b', '*', '>', 'a b', 'h1\n', 'ä']],
    [
      'host names',
      HOSTNAME_PATTERN,
      ['', '-a', 'a-', 'a..b', '.a', 'a.', 'a_b', 'x'.repeat(64), `${'a.'.repeat(127)}aa`, 'a\n'],
    ],
  ] as const)('what are no %s is refused', ([, pattern, texts]) => {
    expect(texts.filter((text) => pattern.test(text))).toEqual([]);
  });

  test.for(['all', 'default', '.', '..', 'a/b', 'a b', '', 'x'.repeat(16), 'tap:1', 'ä'])(
    '%j is no device name',
    (name) => {
      expect(isDeviceName(name)).toBe(false);
    },
  );

  test.for(['ve-x', 'vb-x', 'vz-x', 'vt-x', 'ns-x', 'host0', 'host0p'])(
    '%s is networkd’s',
    (name) => {
      expect(isNetworkdName(name)).toBe(true);
    },
  );
});
