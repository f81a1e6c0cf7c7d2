import { describe, expect, test } from 'vitest';
import { filledIn } from '#agent/cli/placeholders.ts';

const claim = { fds: [21], mac: '02:00:00:00:00:01', mtu: 1450, ifname: 'tap-web' };

describe('placeholders of exec', () => {
  test.each([
    ['tap,id=n0,fd={fd}', 'tap,id=n0,fd=21'],
    [
      'virtio-net-pci,mac={mac},host_mtu={mtu}',
      'virtio-net-pci,mac=02:00:00:00:00:01,host_mtu=1450',
    ],
    ['{ifname}{ifname}', 'tap-webtap-web'],
    ['{fds}', '21'],
    ['{"driver":"x","mac":"{mac}"}', '{"driver":"x","mac":"02:00:00:00:00:01"}'],
    ['{FD} { fd } {other} ${fd', '{FD} { fd } {other} ${fd'],
  ])('%s becomes %s', (word, filled) => {
    expect(filledIn(word, claim)).toBe(filled);
  });

  test('several queues are joined by colons, and {fd} is refused for them', () => {
    const two = { ...claim, fds: [21, 22] };
    expect(filledIn('tap,fds={fds}', two)).toBe('tap,fds=21:22');
    expect(() => filledIn('tap,fd={fd}', two)).toThrow(/2: use \{fds\}/);
  });

  test('what was replaced is not replaced again', () => {
    expect(filledIn('{ifname}', { ...claim, ifname: '{mac}' })).toBe('{mac}');
  });
});
