import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';

// What one file of the agent decides, no other file decides again.

const ROOT = new URL('..', import.meta.url).pathname;

interface OnePlace {
  readonly what: string;
  /** How a decision looks in the source. */
  readonly decides: RegExp;
  /** The files that may. */
  readonly homes: readonly RegExp[];
  readonly planted: readonly string[];
  readonly allowed: readonly string[];
}

const PLACES: readonly OnePlace[] = [
  {
    what: 'whose a device of the kernel is',
    decides:
      /[!=]== (\w+\.)?DEVICE_GROUP|DEVICE_GROUP [!=<>]|[<>] DEVICE_GROUP|[!=]== deviceTag\(|\balias [!=]== (?!undefined\b|alias\b)|[`'"/^]volt:(?!library')\S|\bvdel/,
    homes: [
      /^agent\/host\/ownership\.ts$/,
      // Names of channels, and of keys in Redis.
      /^agent\/(trace|config)\.ts$/,
    ],
    planted: [
      'if (link.group === DEVICE_GROUP) take(link);',
      'const ours = group > DEVICE_GROUP;',
      'if (link?.alias !== deviceTag(attachment)) return;',
      'return link.alias === tag;',
      "if (alias.startsWith('volt:bridge:')) return;",
      'const id = /^volt:(.+)#/.exec(alias);',
      'links.set(link, { name: `vdel${link.index}` });',
    ],
    allowed: ['links.createIfb({ name, group: DEVICE_GROUP });', 'alias: deviceTag(lease),'],
  },
  {
    what: 'whether an attachment is as recorded',
    decides:
      /(what: |\[)['`](device\.(?!peer')|bandwidth\.|lo\.up)|what: 'filter'|\b(link|found|there)\??\.(mac|mtu|up|group|master) [!=]== \w*\.?(device|attachment)\b/,
    homes: [
      /^agent\/host\/comparator\.ts$/,
      // The change for which a holder is stopped.
      /^agent\/host\/reconcile\/mac-changes\.ts$/,
    ],
    planted: [
      "return [{ id, what: 'device.up', expected: true, observed: link.up }];",
      "compare('device.mtu', device.mtu, link.mtu) || [['device.mtu', device.mtu, link.mtu]];",
      'const agrees = link.mtu === device.mtu;',
      "differences.push({ id, what: 'bandwidth.egress', expected, observed });",
      "{ id, what: 'filter', expected: attachment.filter, observed: null },",
    ],
    allowed: [
      "if (differing.has('device.mtu')) change(device.mtu);",
      "describedInside(attachment, { ...peer, what: 'device.peer' })",
    ],
  },
  {
    what: 'what a network type is, by its name',
    decides:
      // A kind of link of the kernel is named macvtap, too.
      /(?<!\bkind )([!=]== |case |includes\()'(isolated|host-only|bridged|macvtap|sriov)'|\['(isolated|host-only|bridged|macvtap|sriov)'[\],]/,
    homes: [/^agent\/host\/networks\/(host-only|isolated|macvtap|sriov|bridged)\.ts$/],
    planted: [
      "if (attachment.type === 'isolated') return;",
      "const routed = network.type !== 'host-only';",
      "case 'macvtap':",
      "if (['bridged', 'host-only'].includes(type)) return;",
    ],
    allowed: ["'host-only': new HostOnly(parts),"],
  },
];

const files = readdirSync(join(ROOT, 'agent'), { recursive: true })
  .map((name) => join('agent', String(name)))
  .filter((name) => name.endsWith('.ts'));

const linesOf = (source: string): string[] =>
  source.split('\n').filter((line) => !/^\s*(\/\/|\/?\*)/.test(line));

const decisions = ({ decides, homes }: OnePlace, file: string, source: string): string[] =>
  homes.some((home) => home.test(file))
    ? []
    : linesOf(source)
        .filter((line) => decides.test(line))
        .map((line) => `${file}: ${line.trim()}`);

for (const place of PLACES) {
  describe(`decided once: ${place.what}`, () => {
    test('no file decides it beside its home', () => {
      const found = files.flatMap((file) =>
        decisions(place, file, readFileSync(join(ROOT, file), 'utf8')),
      );
      expect(found).toEqual([]);
      for (const home of place.homes) expect(files.some((file) => home.test(file))).toBe(true);
    });

    test.each(place.planted)('a second place is found: %s', (line) => {
      expect(decisions(place, 'agent/host/planted.ts', line)).toHaveLength(1);
    });

    test.each(place.allowed)('what only makes something is none: %s', (line) => {
      expect(decisions(place, 'agent/host/planted.ts', line)).toEqual([]);
    });
  });
}
