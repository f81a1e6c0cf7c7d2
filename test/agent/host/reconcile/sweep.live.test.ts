import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { atOnce } from '#native/steps.ts';
import { compare } from '#agent/host/comparator.ts';
import type { Description } from '#agent/host/description.ts';
import { Firewall } from '#agent/host/firewall/firewall.ts';
import { Kernel } from '#agent/host/kernel.ts';
import { describeBy } from '#agent/host/networks/network-type.ts';
import { Removal } from '#agent/host/networks/removal.ts';
import { networkTypesOver } from '#agent/host/networks/types.ts';
import { lookUp } from '#agent/host/reconcile/observe.ts';
import { createLog } from '#agent/log.ts';
import type { AttachmentRecord } from '#agent/storage/journal.ts';
import { until } from '../../../support/agent.ts';
import { viewsOf } from '../../../support/agreement-of-host.ts';
import { addNamespace, bridge, ip, only, removeNamespace } from '../../../support/kernel.ts';
import { startStack, type Stack, VOLT0 } from '../../../support/stack.ts';
import { requireTool } from '../../../support/tools.ts';

// Every value of a description is broken in the kernel, and told by a comparison while it lasts. What lies on the host is
// as before again then, in the same device; what lies in a workload's namespace stays as the workload has made it.
// A value of a description that nothing here can break, and that is not named as no object, fails the test.

const NETNS = 'swept';
const OTHER_GROUP = 7;
const NETWORKS = [
  { ...VOLT0, portIsolation: true },
  {
    network: 'inner',
    type: 'host-only',
    subnet: '10.43.0.0/24',
    gateway: '10.43.0.1',
    ipv6: { subnet: 'fd00:43::/64', gateway: 'fd00:43::1' },
  },
  { network: 'beside', type: 'macvtap', parent: 'nic0', subnet: '10.60.0.0/24' },
  { network: 'alone', type: 'isolated', subnet: '10.44.0.0/24' },
];
const LIMITS = { ingressBitsPerSecond: 8_000_000, egressBitsPerSecond: 16_000_000 };

let stack: Stack;
const kernel = new Kernel();
const log = createLog('silent', 'h1');
const firewall = new Firewall({ log, table: 'unused' });
const describeRecord = describeBy(
  networkTypesOver({
    host: 'h1',
    kernel,
    removal: new Removal(kernel, log),
    journal: { namesDevice: () => false, get: () => undefined, values: () => [] },
    firewall,
    log,
  }),
);

const run = (tool: string, ...words: string[]): string =>
  execFileSync(requireTool(tool), words, { encoding: 'utf8' });

beforeAll(async () => {
  run('ip', 'link', 'add', 'nic0', 'type', 'veth', 'peer', 'name', 'wire0');
  for (const name of ['nic0', 'wire0']) run('ip', 'link', 'set', name, 'up');
  run('ip', 'link', 'add', 'other0', 'type', 'bridge');
  addNamespace(NETNS);
  stack = await startStack({ networks: NETWORKS, config: { reconcileSeconds: 0.5 } });
});
afterAll(async () => {
  await stack[Symbol.asyncDispose]();
  kernel[Symbol.dispose]();
  removeNamespace(NETNS);
});

/** The values of a description by their paths, `device.port.settings.IFLA_BRPORT_MODE`. */
function leavesOf(value: unknown, path = ''): [path: string, value: unknown][] {
  if (typeof value !== 'object' || value === null) return [[path, value]];
  return Object.entries(value).flatMap(([key, one]) =>
    leavesOf(one, path === '' ? key : `${path}.${key}`),
  );
}

interface Breaker {
  readonly path: RegExp;
  /** What a comparison calls it. */
  readonly what: (match: RegExpExecArray) => string;
  /** Values that change one another are broken apart from each other. */
  readonly alone?: true;
  readonly harm: (description: Description, match: RegExpExecArray, value: unknown) => void;
}

const nameOf = ({ device, inside }: Description): string =>
  device?.name ?? inside?.link?.name ?? '';
const placeOf = ({ inside }: Description): string[] =>
  inside === undefined ? [] : ['-n', inside.netns.replace(/.*\//, '')];
const insideOf = ({ inside }: Description): string => inside?.link?.name ?? 'lo';
const set =
  (...words: string[]): Breaker['harm'] =>
  (description) =>
    run('ip', 'link', 'set', nameOf(description), ...words);
const setInside =
  (...words: string[]): Breaker['harm'] =>
  (description) =>
    run('ip', ...placeOf(description), 'link', 'set', insideOf(description), ...words);
const fixedOn = (name: string): string =>
  String(bridge('fdb', 'show', 'dev', name).find(({ flags }) => flags.includes('sticky'))?.['mac']);

const BREAKERS: readonly Breaker[] = [
  { path: /^device\.name$/, what: () => 'device.name', alone: true, harm: set('name', 'astray') },
  { path: /^device\.alias$/, what: () => 'device.alias', alone: true, harm: set('alias', 'mine') },
  {
    path: /^device\.group$/,
    what: () => 'device.group',
    alone: true,
    harm: set('group', String(OTHER_GROUP)),
  },
  // Once alone: three times within ten seconds the holder of a device is stopped for it.
  { path: /^device\.mac$/, what: () => 'device.mac', harm: set('address', '02:00:00:00:99:99') },
  { path: /^device\.mtu$/, what: () => 'device.mtu', harm: set('mtu', '1300') },
  // That it is up, a description says by not being closed.
  { path: /^generation$/, what: () => 'device.up', alone: true, harm: set('down') },
  {
    path: /^device\.settings\.(ipv\d)\.(\w+)$/,
    what: ([, family, key]) => `device.${family}.${key}`,
    harm: (description, [, family = '', key = ''], value) => {
      const path = `/proc/sys/net/${family}/conf/${nameOf(description)}/${key}`;
      writeFileSync(path, value === 0 ? '1' : '0');
    },
  },
  {
    path: /^device\.port\.bridge$/,
    what: () => 'device.bridge',
    alone: true,
    harm: set('master', 'other0'),
  },
  {
    path: /^device\.port\.mac$/,
    what: () => 'device.bridge',
    alone: true,
    harm: set('nomaster'),
  },
  {
    path: /^device\.port\.settings\.(\w+)$/,
    what: ([, key]) => `device.port.${key}`,
    harm: ({ device }, [, key = ''], value) => {
      const link = { index: device?.ifindex ?? 0, name: device?.name ?? '' };
      kernel.links.setBridgePort(link, { [key]: value === 0 ? 1 : 0 });
    },
  },
  {
    path: /^device\.port\.fixed$/,
    what: () => 'device.forwarding',
    harm: (description) => {
      const name = nameOf(description);
      run('bridge', 'fdb', 'del', fixedOn(name), 'dev', name, 'master');
    },
  },
  {
    path: /^device\.limits\.ingressBitsPerSecond$/,
    what: () => 'bandwidth.ingress',
    harm: (description) => run('tc', 'qdisc', 'del', 'dev', nameOf(description), 'root'),
  },
  {
    path: /^device\.limits\.egressBitsPerSecond$/,
    what: () => 'bandwidth.egress',
    harm: ({ device }) => run('ip', 'link', 'delete', `ifb-${device?.ifindex}`),
  },
  {
    path: /^inside\.link\.name$/,
    what: () => 'name',
    alone: true,
    harm: setInside('name', 'astray'),
  },
  {
    path: /^inside\.link\.mac$/,
    what: () => 'mac',
    harm: setInside('address', '02:00:00:00:99:98'),
  },
  { path: /^inside\.link\.mtu$/, what: () => 'mtu', harm: setInside('mtu', '1290') },
  { path: /^inside\.link\.what$/, what: () => 'up', alone: true, harm: setInside('down') },
  {
    path: /^inside\.addresses\.\d+$/,
    what: () => 'address',
    harm: (description, _, value) => {
      const name = insideOf(description);
      run('ip', ...placeOf(description), 'addr', 'del', String(value), 'dev', name);
    },
  },
  {
    path: /^inside\.loopback$/,
    what: () => 'lo.up',
    alone: true,
    harm: (description) => run('ip', ...placeOf(description), 'link', 'set', 'lo', 'down'),
  },
];

/** What says whose and where something is, and what nobody but the agent can change: its tables of nftables are its own. */
const NO_OBJECTS: readonly RegExp[] = [
  /^id$/,
  /^device\.ifindex$/,
  /^filter\./,
  /^maps\./,
  /^inside\.(netns|identity|madeAgain|link\.ifindex)$/,
];

interface Case {
  readonly name: string;
  readonly asked: Omit<AttachRequest, 'id' | 'workload'>;
}

const netns = `/run/netns/${NETNS}`;
const ports: Attachment['ports'] = [{ protocol: 'tcp', hostPort: 8080, port: 80 }];
const CASES: readonly Case[] = [
  { name: 'bv', asked: { kind: 'vm', network: 'volt0', bandwidth: LIMITS } },
  { name: 'bc', asked: { kind: 'container', network: 'volt0', netns } },
  { name: 'hv', asked: { kind: 'vm', network: 'inner', ports } },
  { name: 'hc', asked: { kind: 'container', network: 'inner', netns, bandwidth: LIMITS } },
  { name: 'mv', asked: { kind: 'vm', network: 'beside' } },
  { name: 'mc', asked: { kind: 'container', network: 'beside', netns } },
  { name: 'iv', asked: { kind: 'vm', network: 'alone' } },
  { name: 'ic', asked: { kind: 'container', network: 'alone' } },
];

const recordOf = (id: string): AttachmentRecord =>
  JSON.parse(
    readFileSync(join(stack.agent.runtimeDir, 'attachments', `${id}.json`), 'utf8'),
  ) as AttachmentRecord;

/** All that a comparison tells of an attachment now. */
function differencesOf(record: AttachmentRecord): string[] {
  const description = describeRecord(record);
  if (description === undefined) throw new Error('nothing describes it');
  const looking = { kernel, firewall, describe: describeRecord, deep: true };
  // What the firewall of another process was told is not known here.
  const { facts: _, ...observed } = atOnce(lookUp(looking, [record]));
  const { differences, reported } = compare(description, observed);
  return [...differences, ...reported].map(({ what }) => what);
}

/** The device on the host as iproute2 has it, without what comes and goes with a carrier. */
function lookOf({ device }: Description): unknown {
  if (device === undefined) return undefined;
  const { flags, operstate: _, linkinfo: __, ...link } = only(ip('link', 'show', device.name));
  const port = bridge('-d', 'link', 'show', 'dev', device.name).map((row) => ({
    ...row,
    flags: [],
    state: null,
  }));
  return { link, up: flags.includes('UP'), port, fixed: fixedOn(device.name) };
}

for (const { name, asked } of CASES) {
  describe(`${asked.kind} on ${asked.network}`, () => {
    test('every value of its description is told when it is broken, and ends in agreement', async () => {
      const request = { id: name, workload: `w-${name}`, ...asked };
      await stack.client.attach(stack.host, {
        ...request,
        ...(asked.netns !== undefined && { ifname: name }),
      });
      const record = recordOf(name);
      const description = describeRecord(record);
      if (description === undefined) throw new Error('nothing describes it');
      expect(differencesOf(record)).toEqual([]);
      const before = lookOf(description);
      const leaves = leavesOf(description);
      const found = leaves.flatMap(([path, value]) => {
        const fits = BREAKERS.map((breaker) => ({ breaker, match: breaker.path.exec(path) }));
        return fits.flatMap(({ breaker, match }) =>
          match === null ? [] : [{ path, value, breaker, match }],
        );
      });
      const broken = new Set(found.map(({ path }) => path));
      const unknown = leaves.filter(
        ([path]) => !broken.has(path) && !NO_OBJECTS.some((one) => one.test(path)),
      );
      expect(unknown).toEqual([]);
      const onHost = (path: string): boolean =>
        description.device !== undefined && !path.startsWith('inside');
      const together = found.filter(({ breaker, path }) => breaker.alone !== true && onHost(path));
      const alone = found.filter(({ breaker, path }) => breaker.alone === true && onHost(path));
      for (const round of [together, ...alone.map((one) => [one])]) {
        if (round.length === 0) continue;
        process.kill(stack.agent.pid, 'SIGSTOP');
        try {
          for (const { breaker, match, value } of round) {
            breaker.harm(description, match, value);
            expect(differencesOf(record)).toContain(breaker.what(match));
          }
        } finally {
          process.kill(stack.agent.pid, 'SIGCONT');
        }
        await until(`${round.map(({ path }) => path).join()} is as before`, () => {
          expect(lookOf(description)).toEqual(before);
          expect(differencesOf(record)).toEqual([]);
          return true;
        });
      }
      // What lies in a namespace is told for as long as it lasts, and left to the workload.
      // What takes others away with it comes last.
      const inside = found
        .filter(({ path }) => path.startsWith('inside'))
        .toSorted(
          (one, other) => Number(one.breaker.alone ?? 0) - Number(other.breaker.alone ?? 0),
        );
      for (const { breaker, match, value } of inside) {
        if (match[0] === 'inside.loopback' && value === false) continue;
        if (match[0] === 'inside.link.name' && description.inside?.link?.ifindex === undefined)
          continue;
        breaker.harm(description, match, value);
        const { differences } = await stack.client.check(stack.host, { id: name });
        const told = differences.map(({ what }) => what);
        expect(told.some((what) => what.endsWith(breaker.what(match)))).toBe(true);
        if (match[0] === 'inside.link.name') break;
      }
      await stack.client.detach(stack.host, { id: name });
      await stack.gone(name);
      const { kernel: devices, records, leases } = viewsOf(stack);
      expect([devices, records, leases].filter((one) => one.has(name))).toEqual([]);
    });
  });
}
