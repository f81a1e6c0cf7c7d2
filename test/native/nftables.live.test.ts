import { execFileSync, spawnSync } from 'node:child_process';
import { realpathSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { IpAddress } from '#protocol/address.ts';
import { Nftables, type NftTable } from '#native/nftables.ts';
import type { SetDeclaration, SetElement } from '#native/nftset.ts';
import { until } from '../support/agent.ts';
import { nftElements } from '../support/kernel.ts';
import { requireTool } from '../support/tools.ts';

const nft = (...words: string[]): string =>
  execFileSync(requireTool('nft'), words, { encoding: 'utf8', stdio: 'pipe' });

const table: NftTable = { family: 'inet', name: 't' };
const names: SetDeclaration = { key: ['ifname'] };
const change = (action: 'add' | 'delete' | 'flush', set: string, ...keys: string[]) => ({
  action,
  table,
  set,
  declaration: names,
  elements: keys.map((name) => ({ key: [name] })),
});

let nftables: Nftables;

beforeEach(() => {
  nftables = Nftables.open();
  nftables.makeTables([table], { exclusive: false });
  nftables.run('add set inet t s { type ifname; }');
});
afterEach(() => {
  nftables[Symbol.dispose]();
  nft('flush ruleset');
});

describe('commands', () => {
  test('are done all or not at all, and the error says why in the words of the library', () => {
    const commands = 'add chain inet t c\nadd rule inet t c goto nowhere';
    expect(() => nftables.run(commands)).toThrow(
      expect.objectContaining({
        name: 'NftablesError',
        code: 'NFTABLES',
        reason: expect.stringContaining('No such file or directory'),
        message: expect.stringContaining('in one of 2 lines that begin with: add chain inet t c'),
      }),
    );
    expect(() => nftables.run('add nonsense')).toThrow('syntax error');
    expect(nft('list', 'table', 'inet', 't')).not.toContain('chain');
    // The context is as good as before.
    nftables.run('add chain inet t c');
    expect(nft('list', 'table', 'inet', 't')).toContain('chain c');
  });

  test('that list answer objects, or null for what is not there', () => {
    nftables.change([change('add', 's', 'tap0')]);
    expect(nftables.list('list table inet absent')).toBe(null);
    expect(nftables.list('list table inet t')).toContainEqual({
      set: expect.objectContaining({ name: 's', elem: ['tap0'] }),
    });
    expect(() => nftables.list('list nonsense')).toThrow('syntax error');
  });
});

describe('elements', () => {
  test('are changed all or not at all', () => {
    nftables.change([change('add', 's', 'tap0')]);
    const refused = (...changes: ReturnType<typeof change>[]): void => {
      expect(() => nftables.change(changes)).toThrow(
        expect.objectContaining({ name: 'KernelError', code: 'ENOENT' }),
      );
      expect(nftElements()).toEqual(['inet t s "tap0"']);
    };
    refused(change('add', 's', 'tap1'), change('add', 'absent', 'tap1'));
    refused(change('delete', 's', 'tap0', 'tap1'));
    refused(change('flush', 's'), change('delete', 's', 'tap0'));
    nftables.change([change('flush', 's'), change('add', 's', 'tap0', 'tap2')]);
    expect(nftElements()).toEqual(['inet t s "tap0"', 'inet t s "tap2"']);
    nftables.change([]);
  });

  test('that are there already count as added', () => {
    nftables.change([change('add', 's', 'tap0')]);
    nftables.change([change('add', 's', 'tap0', 'tap1')]);
    expect(nftElements()).toHaveLength(2);
  });

  test('are changed in one transaction, however many', () => {
    const many = Array.from({ length: 20_000 }, (_, n) => `tap${n}`);
    nftables.change([change('add', 's', ...many)]);
    expect(nftElements()).toHaveLength(many.length);
    nftables.change([change('delete', 's', ...many)]);
    expect(nftElements()).toEqual([]);
  });

  const ip = IpAddress.parse;
  const ranges: readonly [string, SetDeclaration, SetElement, string][] = [
    [
      'of one field',
      { key: ['ipv4_addr'], interval: true },
      { key: [ip('10.0.0.0')], end: [ip('10.0.0.255')] },
      '{"prefix":{"addr":"10.0.0.0","len":24}}',
    ],
    [
      'to the last address',
      { key: ['ipv6_addr'], interval: true },
      { key: [ip('ff00::')], end: [ip('ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff')] },
      '{"prefix":{"addr":"ff00::","len":8}}',
    ],
    [
      'of several fields',
      { key: ['ifname', 'ipv4_addr'], interval: true },
      { key: ['br0', ip('10.0.0.0')], end: ['br0', ip('10.0.0.9')] },
      '{"concat":["br0",{"range":["10.0.0.0","10.0.0.9"]}]}',
    ],
  ];
  test.each(ranges)('may be ranges %s', (_what, declaration, element, read) => {
    const { length } = declaration.key;
    nftables.run(
      length === 1
        ? `add set inet t r { type ${declaration.key.join('')}; flags interval; }`
        : 'add set inet t r { type ifname . ipv4_addr; flags interval; }',
    );
    const one = { table, set: 'r', declaration, elements: [element] };
    nftables.change([{ action: 'add', ...one }]);
    expect(nftElements()).toEqual([`inet t r ${read}`]);
    nftables.change([{ action: 'delete', ...one }]);
    expect(nftElements()).toEqual([]);
  });
});

describe('tables of our own: kernel 6.9 and later', () => {
  const own: NftTable = { family: 'bridge', name: 'own' };

  test('are changed by nobody else, and left to the next process as they are', () => {
    const second = Nftables.open();
    {
      using first = Nftables.open();
      expect(first.makeTables([own])).toBe(true);
      first.run('add chain bridge own c');
      expect(() => second.run('add chain bridge own d')).toThrow('Operation not permitted');
      expect(() => second.makeTables([own])).toThrow(expect.objectContaining({ code: 'EPERM' }));
      nft('flush', 'ruleset');
      expect(nft('list', 'table', 'bridge', 'own')).toContain('chain c');
    }
    expect(second.makeTables([own])).toBe(true);
    second.run('add chain bridge own d');
    expect(nft('list', 'table', 'bridge', 'own')).toMatch(/chain c[^]*chain d/);
    expect(() => nft('delete', 'table', 'bridge', 'own')).toThrow('Operation not permitted');
    second[Symbol.dispose]();
    nft('delete', 'table', 'bridge', 'own');
  });
});

describe('chains on single devices', () => {
  const ports: NftTable = { family: 'netdev', name: 'ports' };
  const onLo = { table: ports, chain: 'on_lo' };
  const rulesOf = (chain: string): string[] =>
    nft('-a', 'list', 'chain', 'netdev', 'ports', chain)
      .split('\n')
      .filter((line) => line.includes('goto'))
      .map((line) => line.trim());

  beforeEach(() => {
    nftables.makeTables([ports], { exclusive: false });
    nftables.run('add chain netdev ports a\nadd chain netdev ports b');
    nftables.change([{ ...onLo, action: 'add', hook: 'ingress', device: 'lo', goto: 'a' }]);
  });

  test('are read with where they are hooked', () => {
    nft(`add chain netdev ports late { type filter hook ingress device "lo" priority 0; }`);
    nft(`add chain netdev ports out { type filter hook egress device "lo" priority -300; }`);
    nft('add table netdev theirs');
    nft(`add chain netdev theirs on_lo { type filter hook ingress device "lo" priority -300; }`);
    expect(Object.fromEntries(nftables.deviceChains(ports))).toEqual({
      late: undefined,
      on_lo: { hook: 'ingress', device: 'lo' },
      out: { hook: 'egress', device: 'lo' },
    });
  });

  test('are renewed with their one rule, whatever rules they have', () => {
    const [before = ''] = rulesOf('on_lo');
    expect(before).toMatch(/^goto a # handle/);
    nft('add rule netdev ports on_lo goto a');
    nftables.change([{ ...onLo, action: 'renew', goto: 'b' }]);
    expect(rulesOf('on_lo')).toEqual([expect.stringMatching(/^goto b #/)]);
    nft('flush chain netdev ports on_lo');
    nftables.change([{ ...onLo, action: 'renew', goto: 'a' }]);
    expect(rulesOf('on_lo')).toEqual([expect.stringMatching(/^goto a #/)]);
  });
});

describe('chains and rules of others', () => {
  const own = { family: 'inet', name: 'other' } as const;
  const other = { key: 'other' } as const;
  const device = (key: 'iifname' | 'oifname', name: string, isWhole: boolean) => ({
    key,
    name,
    isWhole,
  });

  test('are read with where they are hooked', () => {
    nft('add table ip other');
    nft('add chain ip other plain');
    nft('add chain ip other drops { type filter hook forward priority 0; policy drop; }');
    nft('add chain ip other passes { type nat hook prerouting priority 0; policy accept; }');
    const found = (name: string, forwards: boolean, drops: boolean) => ({
      ...{ table: 'other', name },
      forwards,
      drops,
    });
    expect(nftables.chains('ip')).toEqual([
      found('plain', false, false),
      found('drops', true, true),
      found('passes', false, false),
    ]);
    expect(nftables.chains('ip6')).toEqual([]);
    expect(nftables.chains('inet')).toEqual([]);
  });

  test.each([
    ['iifname "doc0" accept', true, [device('iifname', 'doc0', true)]],
    ['iifname "doc*" counter accept', true, [device('iifname', 'doc', false)]],
    ['iifname "fifteen-letters" drop', false, [device('iifname', 'fifteen-letters', true)]],
    ['log prefix "x" oifname "doc0" accept', true, [device('oifname', 'doc0', true)]],
    ['iifname != "doc0" accept', true, [other]],
    ['iifname { "doc0", "doc1" } accept', true, [other]],
    [
      'oifname "doc0" ct state established accept',
      true,
      [device('oifname', 'doc0', true), other, other, other],
    ],
    ['iifname "doc0" limit rate 1/second accept', true, [device('iifname', 'doc0', true), other]],
    ['meta mark 7 accept', true, [other, other]],
    ['iifname "doc0" jump plain', false, [device('iifname', 'doc0', true)]],
    ['iifname "doc0" meta mark set 7', false, [device('iifname', 'doc0', true), other, other]],
  ])('are read by what they are about: %s', (rule, accepts, conditions) => {
    nft('add table inet other');
    nft('add chain inet other plain');
    nft('add chain inet other rules');
    nft(`add rule inet other rules ${rule}`);
    expect(nftables.rules(own)).toEqual([{ table: 'other', chain: 'rules', accepts, conditions }]);
  });

  test('are read of iptables, too', () => {
    execFileSync(requireTool('iptables-nft'), [...'-I FORWARD -i doc0 -j ACCEPT'.split(' ')]);
    execFileSync(requireTool('iptables-nft'), [...'-I FORWARD -o doc+ -j ACCEPT'.split(' ')]);
    expect(nftables.rules({ family: 'ip', name: 'filter' })).toEqual([
      {
        ...{ table: 'filter', chain: 'FORWARD', accepts: true },
        conditions: [device('oifname', 'doc', false)],
      },
      {
        ...{ table: 'filter', chain: 'FORWARD', accepts: true },
        conditions: [device('iifname', 'doc0', true)],
      },
    ]);
  });

  test('are none where there is no table', () => {
    expect(nftables.rules({ family: 'ip6', name: 'nowhere' })).toEqual([]);
  });
});

test('a table is deleted, whatever it has, and one that is not there is none', () => {
  nftables.run('add chain inet t c\nadd rule inet t c drop');
  nftables.deleteTable(table);
  expect(nft('list', 'tables')).toBe('');
  nftables.deleteTable(table);
});

test('changes of others are heard, and our own are not', async () => {
  let heard = 0;
  using _watch = nftables.onForeignChange(() => (heard += 1));
  nftables.change([change('add', 's', 'tap0')]);
  nftables.run('add chain inet t c');
  nft('add', 'table', 'inet', 'theirs');
  await until('it is heard', () => heard > 0);
  expect(heard).toBe(1);
});

describe('where it cannot be used', () => {
  const script = `
    const { Nftables } = await import('#native/nftables.ts');
    try { Nftables.open(); console.log('opened'); } catch (error) { console.log(error.code); }`;
  const node = [process.execPath, '--input-type=module', '-e', script];
  const said = (...command: string[]): string => {
    const [program = '', ...args] = [...command, ...node];
    const run = spawnSync(requireTool(program), args, { encoding: 'utf8' });
    return run.stdout.trim();
  };

  test('there is no library', () => {
    const known = execFileSync(requireTool('ldconfig'), ['-p'], { encoding: 'utf8' });
    const library = realpathSync(
      /libnftables\.so\.1 .* => (.*)/.exec(known)?.[1] ?? 'no libnftables',
    );
    const hide = `mount --bind /dev/null ${library} && exec "$@"`;
    expect(said('unshare', '--mount', 'sh', '-c', hide, 'sh')).toBe('NFTABLES_UNAVAILABLE');
  });

  test('the kernel has no netfilter', () => {
    const refuse = ['-f', '-qq', '-o', '/dev/null', '-e', 'trace=socket'];
    const inject = ['-e', 'inject=socket:error=EPROTONOSUPPORT'];
    expect(said('strace', ...refuse, ...inject)).toBe('NFTABLES_UNAVAILABLE');
  });

  test('and elsewhere it can', () => {
    expect(said('env')).toBe('opened');
  });
});
