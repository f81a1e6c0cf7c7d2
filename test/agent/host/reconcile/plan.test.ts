import fc from 'fast-check';
import { describe as about, expect, test } from 'vitest';
import type { Attachment } from '#protocol/attachment.ts';
import { parseNetwork } from '#protocol/network.ts';
import type { AttachmentRecord } from '#agent/storage/journal.ts';
import { forwardingKey, type Observed, type SeenLink } from '#agent/host/reconcile/observe.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import { agrees } from '#agent/host/comparator.ts';
import { closed, type Describe, isAttached } from '#agent/host/description.ts';
import { describePort } from '#agent/host/networks/bridge-ports.ts';
import { describeIsolated } from '#agent/host/networks/isolated.ts';
import { atOnce } from '#native/steps.ts';
import {
  type Action,
  GRACE_MS,
  holderOf,
  plan,
  type PlanOptions,
} from '#agent/host/reconcile/plan.ts';
import { DEVICE_GROUP, deviceTag, isStray } from '#agent/host/ownership.ts';

const BOOT = 'boot-now';
const BRIDGE_INDEX = 2;
const NETWORK = parseNetwork({ network: 'n0', subnet: '10.0.0.0/24', gateway: '10.0.0.1' });

const BRIDGE: SeenLink = {
  index: BRIDGE_INDEX,
  name: NETWORK.bridge,
  kind: 'bridge',
  up: true,
  mtu: 1500,
  group: DEVICE_GROUP,
  alias: 'volt:bridge:n0',
};
const FOREIGN: SeenLink = { index: 3, name: 'eth0', up: true, mtu: 1500, group: 0 };

const MAC = '02:00:00:00:00:01';

function recordOf(index: number, kind: Attachment['kind'] = 'vm'): AttachmentRecord {
  const id = `a${index}`;
  const mac = MAC;
  const netns = kind === 'container' ? { netns: `/run/netns/${id}` } : {};
  const attachment: Attachment = {
    id,
    generation: 7,
    workload: id,
    kind,
    network: 'n0',
    type: 'bridged',
    host: 'h1',
    state: 'attached',
    mac,
    device: {
      type: kind === 'vm' ? 'tap' : 'veth',
      name: `dev-${index}`,
      ifindex: index,
      mac,
      mtu: 1500,
      bridge: NETWORK.bridge,
    },
    filter: 'full',
    ...netns,
    addresses: [{ address: `10.0.0.${index}/24` }],
    routes: [],
    dns: {},
    ports: [],
    bandwidth: {},
    lease: { generation: 7, grantedAt: '2026-01-01T00:00:00Z' },
    createdAt: '2026-01-01T00:00:00Z',
    labels: {},
  };
  return {
    id,
    state: 'attached',
    networkType: 'bridged',
    request: { id, workload: id, kind, network: 'n0', ...netns },
    contentKey: '{}',
    createdAt: '2026-01-01T00:00:00Z',
    bootId: BOOT,
    deviceName: `dev-${index}`,
    generation: 7,
    network: NETWORK,
    attachment,
    ...(kind === 'container' && { namespaceIdentity: `4:${index}` }),
  };
}

/** The device as a record has it. */
function linkFor({ attachment }: AttachmentRecord): SeenLink {
  const { device } = attachment ?? {};
  if (attachment === undefined || device === undefined || device === null) throw new Error('none');
  const { ifindex: index, name, mac, mtu } = device;
  const alias = deviceTag(attachment);
  const kind = 'tun';
  return {
    index,
    name,
    kind,
    mac,
    mtu,
    alias,
    up: true,
    group: DEVICE_GROUP,
    master: BRIDGE_INDEX,
  };
}

function observedOf(
  links: readonly SeenLink[],
  records: readonly AttachmentRecord[] = [],
  more: Partial<Observed> = {},
): Observed {
  return {
    whole: true,
    links: new Map(links.map((link) => [link.index, link])),
    names: new Map(links.map((link) => [link.name, link])),
    addresses: new Map([[BRIDGE_INDEX, new Set(['10.0.0.1/24'])]]),
    namespaces: new Map(
      records.flatMap(({ attachment, namespaceIdentity }) =>
        attachment?.netns === undefined ? [] : [[attachment.netns, namespaceIdentity ?? '']],
      ),
    ),
    elsewhere: new Set(),
    inside: new Map(),
    limits: new Map(),
    redirects: new Map(),
    forwarding: new Set(links.map(({ index }) => forwardingKey({ ifindex: index, mac: MAC }))),
    ...more,
  };
}

/** As the network types do. */
const describe: Describe = (record) => {
  if (!isAttached(record)) return undefined;
  const isolated = record.attachment.type === 'isolated';
  // A macvlan lies in the workload's namespace alone.
  const inside = record.networkType === 'macvtap';
  const { id, generation } = record.attachment;
  const own = inside ? { id, generation } : describePort(record);
  const description = isolated ? describeIsolated(record) : own;
  return record.state === 'fenced' ? closed(description) : description;
};

const told = (record: AttachmentRecord, link: SeenLink): boolean => {
  const description = describe(record);
  return description !== undefined && agrees(description, link);
};

const planned = (options: Partial<PlanOptions> & Pick<PlanOptions, 'records' | 'observed'>) =>
  atOnce(
    plan({
      describe,
      suspects: new Map(),
      now: 1_000,
      bootId: BOOT,
      onReboot: 'recreate',
      ...options,
    }),
  );

const outline = (actions: readonly Action[]): string[] =>
  actions.map(({ kind, id, differences }) => {
    return `${kind} ${id}: ${differences.map(({ what }) => what).join(', ')}`;
  });

about('a device on the host', () => {
  const cases: [name: string, change: Partial<SeenLink> | null, action: string[]][] = [
    ['as recorded', {}, []],
    ['missing', null, ['remake a10: device']],
    ['renamed', { name: 'x' }, ['mend a10: device.name']],
    ['down', { up: false }, ['mend a10: device.up']],
    ['with another MAC', { mac: '02:00:00:00:00:02' }, ['mend a10: device.mac']],
    ['with another MTU', { mtu: 1400 }, ['mend a10: device.mtu']],
    ['in another group', { group: 0 }, ['mend a10: device.group']],
    ['on another bridge', { master: 3 }, ['mend a10: device.bridge']],
    ["somebody else's under the same index", { alias: 'mine', group: 0 }, ['remake a10: device']],
    ['with a text of somebody in its alias', { alias: 'mine' }, ['mend a10: device.alias']],
    // Index, name and group are the record's: no other device has all three.
    ['with an earlier alias of its own', { alias: 'volt:a10#6' }, ['mend a10: device.alias']],
    ['with the alias of another', { alias: 'volt:zz#9' }, ['mend a10: device.alias']],
  ];
  for (const [name, change, actions] of cases) {
    test(`${name}: ${actions.join() || 'nothing is done'}`, () => {
      const record = recordOf(10);
      const links = change === null ? [] : [{ ...linkFor(record), ...change }];
      const observed = observedOf([BRIDGE, FOREIGN, ...links]);
      expect(outline(planned({ records: [record], observed }).actions)).toEqual(actions);
    });
  }

  test('out of its bridge: it is enslaved again', () => {
    const record = recordOf(10);
    const { master: _, ...link } = linkFor(record);
    const observed = observedOf([BRIDGE, link]);
    expect(outline(planned({ records: [record], observed }).actions)).toEqual([
      'mend a10: device.bridge',
    ]);
    expect(told(record, link)).toBe(false);
  });

  test('without alias: it is its own by index, name and group, and else missing', () => {
    const record = recordOf(10);
    const { alias: _, ...link } = linkFor(record);
    const actions = (one: SeenLink): string[] =>
      outline(planned({ records: [record], observed: observedOf([BRIDGE, one]) }).actions);
    expect(actions(link)).toEqual(['mend a10: device.alias']);
    expect(actions({ ...link, name: 'other' })).toEqual(['remake a10: device']);
    expect(actions({ ...link, group: 0 })).toEqual(['remake a10: device']);
  });

  test('with frames for its MAC led elsewhere: they are led to it again, where it is filtered', () => {
    const record = recordOf(10);
    const observed = observedOf([BRIDGE, linkFor(record)], [], { forwarding: new Set() });
    const actions = (one: AttachmentRecord): string[] =>
      outline(planned({ records: [one], observed }).actions);
    expect(actions(record)).toEqual(['mend a10: device.forwarding']);
    expect(actions({ ...record, network: { ...NETWORK, filter: false } })).toEqual([]);
  });

  test('fenced: it stays down, and no port of its bridge', () => {
    const record = { ...recordOf(10), state: 'fenced' as const };
    const link = linkFor(record);
    const actions = (one: SeenLink): string[] =>
      outline(planned({ records: [record], observed: observedOf([BRIDGE, one]) }).actions);
    expect(actions(link)).toEqual(['close a10: device.up']);
    expect(actions({ ...link, up: false })).toEqual(['close a10: device.bridge']);
    const { master: _, ...left } = link;
    expect(actions({ ...left, up: false })).toEqual([]);
    expect(told(record, { ...left, up: false })).toBe(true);
    expect(told(record, { ...link, up: false })).toBe(false);
  });
});

about('what is acted upon only when it stays', () => {
  test('a namespace that is gone, or another', () => {
    const record = recordOf(10, 'container');
    for (const namespaces of [new Map(), new Map([['/run/netns/a10', '4:999']])]) {
      const observed = observedOf([BRIDGE], [], { namespaces });
      const first = planned({ records: [record], observed });
      expect(first.actions).toEqual([]);
      const early = planned({
        records: [record],
        observed,
        suspects: first.suspects,
        now: 999 + GRACE_MS,
      });
      expect(early.actions).toEqual([]);
      const late = planned({
        records: [record],
        observed,
        suspects: early.suspects,
        now: 1_000 + GRACE_MS,
      });
      expect(late.actions).toMatchObject([{ kind: 'detach', id: 'a10', reason: 'namespace-gone' }]);
    }
  });

  test('no container whose path alone is gone', () => {
    const gone = new Map<string, string>();
    const planFor = (record: AttachmentRecord, observed: Observed): readonly Action[] => {
      const suspects = new Map([[`namespace ${record.id}`, 0]]);
      return planned({ records: [record], observed, suspects, now: GRACE_MS }).actions;
    };
    const pair = recordOf(10, 'container');
    const ended = planFor(pair, observedOf([BRIDGE], [], { namespaces: gone }));
    expect(outline(ended)).toEqual(['detach a10: netns']);
    // The end of a pair on the host stands as long as the other does.
    const standing = observedOf([BRIDGE, linkFor(pair)], [], { namespaces: gone });
    expect(planFor(pair, standing)).toEqual([]);
    const { attachment } = pair;
    if (attachment === undefined || attachment.device === null) throw new Error('no device');
    const device = { ...attachment.device, type: 'macvlan' as const };
    const macvlan = {
      ...pair,
      networkType: 'macvtap' as const,
      attachment: { ...attachment, type: 'macvtap' as const, device },
    };
    const seen = (more: Partial<Observed>): readonly Action[] =>
      planFor(macvlan, observedOf([BRIDGE], [], { namespaces: gone, ...more }));
    expect(outline(seen({}))).toEqual(['detach a10: netns']);
    expect(seen({ elsewhere: new Set(['a10']) })).toEqual([]);
  });

  test('a container whose namespace stands gets its device again at once', () => {
    const record = recordOf(10, 'container');
    const observed = observedOf([BRIDGE], [record]);
    expect(outline(planned({ records: [record], observed }).actions)).toEqual([
      'remake a10: device',
    ]);
  });

  test('a tagged device of nobody; not one that is being deleted, nor after a partial look', () => {
    const orphan = linkFor(recordOf(10));
    const observed = observedOf([FOREIGN, orphan]);
    const { actions, suspects } = planned({ records: [], observed });
    expect(actions).toEqual([]);
    const now = 1_000 + GRACE_MS;
    const again = (seen: Observed): readonly Action[] =>
      planned({ records: [], observed: seen, suspects, now }).actions;
    expect(again(observed)).toMatchObject([{ kind: 'remove', id: 'a10', link: { index: 10 } }]);
    expect(again({ ...observed, whole: false })).toEqual([]);
    expect(again(observedOf([{ ...orphan, group: DEVICE_GROUP + 1 }]))).toEqual([]);
    expect(again(observedOf([{ ...orphan, alias: 'volt:a10#8' }]))).toEqual([]);
  });
});

about('what has changed since it was read', () => {
  const changed = { isAsRead: () => false };

  test("a device that is missing or wrong by then is nobody's fault", () => {
    const [missing, wrong] = [recordOf(10), recordOf(11)];
    const observed = observedOf([BRIDGE, { ...linkFor(wrong), up: false }], [missing, wrong]);
    const options = { records: [missing, wrong], observed };
    expect(outline(planned(options).actions)).toHaveLength(2);
    expect(planned({ ...options, ...changed }).actions).toEqual([]);
  });

  test('neither a device nor a lease that has come meanwhile is suspected', () => {
    const record = recordOf(10);
    const { id, generation = 0 } = record;
    const lease = { id, generation } as Lease;
    const come = { records: [], observed: observedOf([linkFor(record)]) };
    const leases = new Map([[id, lease]]);
    expect(planned({ ...come, leases: new Map() }).suspects.size).toBe(1);
    expect(planned({ ...come, leases, ...changed }).suspects.size).toBe(0);
    const gone = { records: [record], observed: observedOf([BRIDGE], [record]), leases: new Map() };
    expect(planned({ ...gone, ...changed }).suspects.size).toBe(0);
  });
});

about('the ledger', () => {
  const leaseFor = (record: AttachmentRecord, more: Partial<Lease> = {}): Lease => ({
    ...{ id: record.id, generation: 7, network: 'n0', workload: record.id, kind: 'vm' },
    ...{ host: 'h1', bootId: BOOT, mac: '02:00:00:00:00:01', addresses: [] },
    grantedAt: '2026-01-01T00:00:00Z',
    ...more,
  });
  /** What is done once it has been seen twice, a grace apart. */
  const after = (options: Pick<PlanOptions, 'records' | 'observed' | 'leases'>): string[] => {
    const first = planned(options);
    expect(first.actions).toEqual([]);
    const soon = planned({ ...options, suspects: first.suspects, now: 999 + GRACE_MS });
    expect(soon.actions).toEqual([]);
    const late = { ...options, suspects: first.suspects, now: 1_000 + GRACE_MS };
    return outline(planned(late).actions);
  };
  const record = recordOf(10);
  const observed = observedOf([BRIDGE, linkFor(record)]);
  const leasesOf = (...leases: Lease[]): Map<string, Lease> =>
    new Map(leases.map((lease) => [lease.id, lease]));

  test('is told of what it has no lease of, or another', () => {
    const records = [record];
    expect(after({ records, observed, leases: leasesOf(leaseFor(record)) })).toEqual([]);
    expect(after({ records, observed, leases: leasesOf() })).toEqual(['reassert a10: lease']);
    const other = leaseFor(record, { generation: 8 });
    expect(after({ records, observed, leases: leasesOf(other) })).toEqual(['reassert a10: lease']);
  });

  test('is not told of what is being made or ended, nor of a fenced attachment', () => {
    for (const state of ['attaching', 'detaching', 'fenced'] as const) {
      const { master: _, ...link } = { ...linkFor(record), up: false };
      const seen = observedOf([BRIDGE, link]);
      expect(
        after({ records: [{ ...record, state }], observed: seen, leases: leasesOf() }),
      ).toEqual([]);
    }
  });

  test('is asked for nothing while it cannot be reached', () => {
    expect(after({ records: [record], observed, leases: undefined })).toEqual([]);
  });

  test('gets back what nothing on this host belongs to; not what a device or a reboot speaks for', () => {
    const nothing = observedOf([BRIDGE]);
    const released = ['release a10: record'];
    const cases: [lease: Lease, seen: Observed, expected: string[]][] = [
      [leaseFor(record), nothing, released],
      [leaseFor(record), observed, []],
      [leaseFor(record, { bootId: 'boot-before' }), nothing, []],
      [leaseFor(record, { bootId: 'boot-before', kind: 'container' }), nothing, released],
    ];
    for (const [lease, seen, expected] of cases) {
      const actions = after({ records: [], observed: seen, leases: leasesOf(lease) });
      expect(actions.filter((one) => !one.startsWith('remove'))).toEqual(expected);
    }
    // Another lease of the same id is seen for the first time.
    const first = planned({ records: [], observed: nothing, leases: leasesOf(leaseFor(record)) });
    const newer = leasesOf(leaseFor(record, { generation: 8 }));
    const again = { suspects: first.suspects, now: 1_000 + GRACE_MS };
    expect(planned({ records: [], observed: nothing, leases: newer, ...again }).actions).toEqual(
      [],
    );
  });
});

test('an isolated VM whose TAP is gone gets it again where its namespace stands, and in no other', () => {
  const record = recordOf(10);
  const netns = '/run/netns/volt-a10';
  const { attachment } = record;
  if (attachment === undefined) throw new Error('none');
  const isolated = { ...record, attachment: { ...attachment, type: 'isolated' as const, netns } };
  const look = (identity: string, tap: SeenLink | null): Partial<Observed> => ({
    namespaces: new Map([[netns, identity]]),
    inside: new Map([
      ['a10', { kind: 'seen', identity, link: tap, loopback: true, addresses: new Set() }],
    ]),
  });
  const away: Partial<Observed> = {
    namespaces: new Map(),
    inside: new Map([['a10', { kind: 'absent' }]]),
  };
  const actions = (own: AttachmentRecord, more: Partial<Observed>): string[] =>
    outline(planned({ records: [own], observed: observedOf([], [], more) }).actions);
  expect(actions(isolated, look('4:1', linkFor(record)))).toEqual([]);
  expect(actions(isolated, look('4:1', null))).toEqual(['remake a10: device']);
  const named = { ...isolated, namespaceIdentity: '4:1' };
  expect(actions(named, look('4:1', null))).toEqual(['remake a10: device']);
  expect(actions(named, look('4:2', null))).toEqual([]);
  expect(actions(isolated, away)).toEqual(['remake a10: netns']);
});

test('strays: whose group, tag and name say so, and nobody else', () => {
  const record = recordOf(10);
  const own = linkFor(record);
  const stray: SeenLink = { ...own, index: 20, name: 'x' };
  const { alias: _tag, ...untagged } = stray;
  const cases: [name: string, link: SeenLink, expected: boolean][] = [
    ['the device itself', own, false],
    ['another with its tag', stray, true],
    ['its IFB', { ...stray, name: 'ifb-10', kind: 'ifb' }, false],
    ['the IFB of a device that it had', { ...stray, name: 'ifb-9', kind: 'ifb' }, true],
    ['one without a tag', untagged, true],
    ['one without a tag, with the name of a record', { ...untagged, name: 'dev-10' }, false],
    ['a bridge without a tag', { ...untagged, kind: 'bridge' }, false],
    [
      'hardware in our group',
      { index: 20, name: 'x', up: true, mtu: 1, group: DEVICE_GROUP },
      false,
    ],
    ['another alias', { ...stray, alias: 'volt:library:x' }, false],
    ['another group', { ...untagged, group: 0 }, false],
    ['put away, and not deleted', { ...untagged, name: 'vdel20', group: DEVICE_GROUP + 9 }, true],
    ['put away by somebody else', { ...untagged, name: 'vdel20', group: 5 }, false],
  ];
  for (const [name, link, expected] of cases) {
    const tagged = link.alias?.startsWith('volt:a10#') === true ? record : undefined;
    expect([
      name,
      isStray(link, tagged && holderOf(tagged, describe), link.name === record.deviceName),
    ]).toEqual([name, expected]);
  }
  const detaching: AttachmentRecord = { ...record, state: 'detaching' };
  expect(isStray(stray, holderOf(detaching, describe), false)).toBe(false);
});

about('after a reboot', () => {
  const before = (kind: Attachment['kind']): AttachmentRecord => ({
    ...recordOf(10, kind),
    bootId: 'boot-before',
  });

  test("a VM's device is made again, or its lease ended; a container's always ends", () => {
    const observed = observedOf([]);
    const actions = (kind: Attachment['kind'], onReboot: 'recreate' | 'release') =>
      planned({ records: [before(kind)], observed, onReboot }).actions;
    expect(outline(actions('vm', 'recreate'))).toEqual(['remake a10: boot, device']);
    for (const [kind, onReboot] of [
      ['vm', 'release'],
      ['container', 'recreate'],
      ['container', 'release'],
    ] as const) {
      expect(actions(kind, onReboot)).toMatchObject([{ kind: 'detach', reason: 'reboot' }]);
    }
  });

  test('nothing is made again or ended while the records may be of the machine that this one was copied from', () => {
    for (const kind of ['vm', 'container'] as const) {
      const known = { records: [before(kind)], observed: observedOf([]), isOwn: false };
      expect(planned(known).actions).toEqual([]);
    }
  });
});

test('what was put right needs nothing more, and nothing of others is named', () => {
  const change = fc.option(
    fc.record(
      {
        name: fc.constantFrom('x', 'y'),
        up: fc.boolean(),
        mtu: fc.constantFrom(1400, 1500),
        mac: fc.constantFrom('02:00:00:00:00:01', '02:00:00:00:00:09'),
        group: fc.constantFrom(0, DEVICE_GROUP),
        master: fc.constantFrom(BRIDGE_INDEX, FOREIGN.index),
        alias: fc.constantFrom('foreign', 'volt:other#1'),
      },
      { requiredKeys: [] },
    ),
    { nil: null },
  );
  fc.assert(
    fc.property(fc.array(change, { maxLength: 8 }), (changes) => {
      const records = changes.map((_, place) => recordOf(10 + place));
      const links = new Map<number, SeenLink>([BRIDGE, FOREIGN].map((link) => [link.index, link]));
      for (const [place, one] of changes.entries()) {
        const record = records[place];
        if (one !== null && record !== undefined) {
          links.set(10 + place, { ...linkFor(record), ...one });
        }
      }
      // By its index, our group and its name a device is its attachment's, whatever text somebody has given it.
      const foreign = [...links.values()].filter(
        ({ alias, group, name }) =>
          !alias?.startsWith('volt:') && !(group === DEVICE_GROUP && name.startsWith('dev-')),
      );
      const kept = [...records];
      // The model does as it is told: what is mended or made again is as its record says.
      const apply = (action: Action): void => {
        const at = kept.findIndex(({ id }) => id === action.id);
        const record = kept[at];
        if (action.kind === 'remove') {
          expect(links.get(action.link.index)).toBe(action.link);
          links.delete(action.link.index);
        } else if (record?.attachment?.device) {
          const { device } = record.attachment;
          const ifindex = action.kind === 'remake' ? device.ifindex + 100 : device.ifindex;
          const attachment = { ...record.attachment, device: { ...device, ifindex } };
          kept[at] = { ...record, attachment };
          links.set(ifindex, linkFor({ ...record, attachment }));
        }
      };
      let suspects: ReadonlyMap<string, number> = new Map();
      for (const now of [0, GRACE_MS]) {
        const pass = planned({
          records: kept,
          observed: observedOf([...links.values()]),
          suspects,
          now,
        });
        suspects = pass.suspects;
        for (const action of pass.actions) apply(action);
      }
      const observed = observedOf([...links.values()]);
      const last = planned({ records: kept, observed, suspects, now: GRACE_MS });
      expect(last.actions).toEqual([]);
      for (const link of foreign) expect(links.get(link.index)).toEqual(link);
    }),
  );
});
