import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  attachAnswerSchema,
  type AttachRequest,
  attachRequestSchema,
  checkRequestSchema,
  contentKey,
  detachRequestSchema,
  getRequestSchema,
  KINDS,
  listRequestSchema,
  networkListRequestSchema,
  networkPutRequestSchema,
  PORT_PROTOCOLS,
} from '#protocol/attachment.ts';
import { decode, decodeAnswer, encode, encodeAnswer } from '#protocol/envelope.ts';
import { isDeviceName } from '#protocol/names.ts';
import { parseRequest } from '#protocol/parse.ts';
import { attachment, containerRequest, vmRequest } from './samples.ts';
import { thrownBy } from './thrown.ts';

const id = fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$/);
const optional = <T>(arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> =>
  fc.option(arbitrary, { nil: undefined });
const port = fc.integer({ min: 1, max: 65_535 });
const bitsPerSecond = fc.integer({ min: 8_000, max: 1e12 });
const text = (max: number): fc.Arbitrary<string> =>
  fc.string({ unit: 'grapheme', minLength: 1, maxLength: max }).filter((one) => one.length <= max);
const anyRequest = fc
  .record({
    id,
    workload: id,
    kind: fc.constantFrom(...KINDS),
    network: fc.stringMatching(/^[a-z0-9][a-z0-9_-]{0,14}$/),
    requestId: optional(fc.uuid()),
    netns: optional(fc.stringMatching(/^\/[a-z/]{1,40}$/)),
    ifname: optional(fc.stringMatching(/^[a-z][a-z0-9]{0,14}$/).filter(isDeviceName)),
    addresses: optional(fc.constantFrom(['10.42.0.5'], ['fd00::5'], ['10.42.0.5', 'fd00::5'])),
    mac: optional(fc.stringMatching(/^[0-9a-d]2(:[0-9a-f]{2}){5}$/)),
    mtu: optional(fc.integer({ min: 68, max: 65_535 })),
    hostname: optional(fc.stringMatching(/^[a-z]([a-z0-9-]{0,20}[a-z0-9])?$/)),
    tap: optional(
      fc.record(
        {
          queues: fc.integer({ min: 1, max: 253 }),
          vnetHdr: fc.boolean(),
          ownerUid: fc.integer({ min: 0, max: 2 ** 32 - 2 }),
          ownerGid: fc.integer({ min: 0, max: 2 ** 32 - 2 }),
        },
        { requiredKeys: [] },
      ),
    ),
    ports: optional(
      fc.uniqueArray(
        fc.record({
          protocol: fc.constantFrom(...PORT_PROTOCOLS),
          hostPort: port,
          port,
          hostAddress: optional(fc.constantFrom('192.0.2.1', '2001:db8::1')),
        }),
        {
          maxLength: 8,
          selector: ({ protocol, hostPort, hostAddress }) =>
            `${protocol}${hostPort}${hostAddress ?? ''}`,
        },
      ),
    ),
    bandwidth: optional(
      fc.record(
        { ingressBitsPerSecond: bitsPerSecond, egressBitsPerSecond: bitsPerSecond },
        { requiredKeys: [] },
      ),
    ),
    leaseTtlSeconds: optional(fc.integer({ min: 1, max: 31_536_000 })),
    dryRun: optional(fc.boolean()),
    labels: optional(
      fc.dictionary(
        text(64).filter((key) => key !== '__proto__'),
        text(256),
        { maxKeys: 8, noNullPrototype: false },
      ),
    ),
  })
  .map(({ netns, ifname, tap, ...request }) =>
    request.kind === 'vm'
      ? { ...request, tap }
      : { ...request, netns, ifname: netns === undefined ? undefined : ifname },
  );

const refusalOf = (request: unknown): { path: unknown; message: string } => {
  const error = thrownBy(() => parseRequest(attachRequestSchema, request));
  expect(error.code).toBe('INVALID_REQUEST');
  return { path: error.details?.['path'], message: error.message };
};

describe('attach', () => {
  test('what one side encodes is what the other has after decoding and checking', () => {
    fc.assert(
      fc.property(anyRequest, (request) => {
        const received = parseRequest(attachRequestSchema, decode(encode(request)));
        expect(received).toEqual(request);
        // As records are read again.
        expect(parseRequest(attachRequestSchema, received)).toEqual(received);
      }),
    );
  });

  test('addresses and MACs come out canonical, IPv4 first', () => {
    const request = parseRequest(attachRequestSchema, {
      ...vmRequest,
      addresses: ['FD00:0::5', '10.42.0.5'],
      mac: '52:54:00:AB:CD:EF',
    });
    expect(request.addresses).toEqual(['10.42.0.5', 'fd00::5']);
    expect(request.mac).toBe('52:54:00:ab:cd:ef');
  });

  test.for<[string, Record<string, unknown>, string, string]>([
    ['no id', { id: undefined }, 'id', 'expected string'],
    ['an id with a slash', { id: '../x' }, 'id', 'must be an id'],
    ['an id of 65', { id: 'x'.repeat(65) }, 'id', 'must be an id'],
    ['an id of Unicode', { id: 'vm-ü' }, 'id', 'must be an id'],
    ['an id that is a number', { id: 7 }, 'id', 'expected string'],
    ['a workload with a space', { workload: 'vm a' }, 'workload', 'must be an id'],
    ['another kind', { kind: 'pod' }, 'kind', 'expected one of'],
    ['a network with a dot', { network: 'a.b' }, 'network', 'must be a network'],
    [
      'a request id with a line break',
      { requestId: 'a\r\nNats-Msg-Id: b' },
      'requestId',
      'control',
    ],
    ['an empty request id', { requestId: '' }, 'requestId', '1 to 128'],
    ['a namespace for a VM', { netns: '/run/netns/x' }, 'netns', 'is for containers'],
    ['an interface name for a VM', { ifname: 'eth0' }, 'ifname', 'is for containers'],
    ['an address with a prefix', { addresses: ['10.42.0.5/24'] }, 'addresses.0', 'not an IP'],
    ['an octal address', { addresses: ['010.42.0.5'] }, 'addresses.0', 'not an IP'],
    ['no address', { addresses: [] }, 'addresses', '>=1'],
    ['nil among addresses', { addresses: [null] }, 'addresses.0', 'expected string'],
    [
      'two addresses of a family',
      { addresses: ['10.0.0.1', '10.0.0.2'] },
      'addresses',
      'per family',
    ],
    ['three addresses', { addresses: ['10.0.0.1', '::2', '::3'] }, 'addresses', '<=2'],
    ['a MAC with hyphens', { mac: '52-54-00-ab-cd-ef' }, 'mac', 'not a MAC address'],
    ['a multicast MAC', { mac: '01:00:5e:00:00:01' }, 'mac', 'unicast'],
    ['no MAC at all', { mac: '00:00:00:00:00:00' }, 'mac', 'unicast'],
    ['the MAC of a host end', { mac: 'fe:54:00:ab:cd:ef' }, 'mac', 'begins with fe'],
    ['an MTU of 67', { mtu: 67 }, 'mtu', '>=68'],
    ['an MTU beyond 2^53', { mtu: 2 ** 60 }, 'mtu', ''],
    ['a host name with an underscore', { hostname: 'a_b' }, 'hostname', 'RFC 1123'],
    ['no queue', { tap: { queues: 0 } }, 'tap.queues', '>=1'],
    ['254 queues', { tap: { queues: 254 } }, 'tap.queues', '<=253'],
    ['an owner by name', { tap: { ownerUid: 'root' } }, 'tap.ownerUid', 'expected number'],
    // setuid(-1) means "leave as it is".
    ['owner 2^32 - 1', { tap: { ownerUid: 2 ** 32 - 1 } }, 'tap.ownerUid', '<=4294967294'],
    ['an unknown key of tap', { tap: { queue: 1 } }, 'tap.queue', 'unknown key'],
    ['port 0', { ports: [{ protocol: 'tcp', hostPort: 0, port: 80 }] }, 'ports.0.hostPort', '>=1'],
    [
      'one host port twice',
      {
        ports: [
          { protocol: 'tcp', hostPort: 80, port: 80 },
          { protocol: 'tcp', hostPort: 80, port: 81 },
        ],
      },
      'ports',
      'one host port twice',
    ],
    [
      'bandwidth of nothing',
      { bandwidth: { egressBitsPerSecond: 0 } },
      'bandwidth.egressBitsPerSecond',
      '>=8000',
    ],
    ['a lease of no time', { leaseTtlSeconds: 0 }, 'leaseTtlSeconds', '>=1'],
    ['labels that are numbers', { labels: { a: 1 } }, 'labels.a', 'expected string'],
    ['an unknown key', { netsn: '/run/netns/x' }, 'netsn', 'unknown key'],
  ])('of a VM, %s is refused', ([, keys, path, message]) => {
    const refused = refusalOf({ ...vmRequest, ...keys });
    expect(refused.path).toBe(path);
    expect(refused.message).toContain(`${path}: `);
    expect(refused.message).toContain(message);
  });

  test.for<[string, Record<string, unknown>, string, string]>([
    ['a relative namespace', { netns: 'run/netns/x' }, 'netns', 'absolute path'],
    ['a namespace with a NUL', { netns: '/run/netns/x\0y' }, 'netns', 'absolute path'],
    ['an interface name too long', { ifname: 'x'.repeat(16) }, 'ifname', 'device name'],
    ['an interface called default', { ifname: 'default' }, 'ifname', 'device name'],
    [
      'an interface name without a namespace',
      { netns: undefined, ifname: 'eth0' },
      'ifname',
      'netns',
    ],
    ['a TAP', { tap: {} }, 'tap', 'is for VMs'],
  ])('of a container, %s is refused', ([, keys, path, message]) => {
    const refused = refusalOf({ ...containerRequest, ...keys });
    expect(refused.path).toBe(path);
    expect(refused.message).toContain(message);
  });

  test.for([null, undefined, 'att-1', 7, [], [vmRequest]])('%j is no request', (value) => {
    expect(refusalOf(value).path).toBe('');
  });

  test('65 labels are one too many', () => {
    const labels = Object.fromEntries(Array.from({ length: 65 }, (_, n) => [`k${n}`, '']));
    expect(refusalOf({ ...vmRequest, labels }).path).toBe('labels');
  });

  test('no bytes get past decoding and checking as anything but a request or a VoltError', () => {
    const someKeys = fc.dictionary(
      fc.constantFrom(...Object.keys(attachRequestSchema.shape), 'other', 'constructor'),
      fc.jsonValue({ depthSize: 'small' }),
      { noNullPrototype: false },
    );
    fc.assert(
      fc.property(someKeys, (keys) => {
        const error = thrownBy(() => {
          parseRequest(attachRequestSchema, decode(encode({ ...keys, id: null })));
        });
        expect(error.code).toBe('INVALID_REQUEST');
      }),
    );
  });
});

describe('the other requests', () => {
  test.for([
    ['detach', detachRequestSchema, { id: 'a', generation: 4_294_967_297, requestId: 'r' }],
    ['get', getRequestSchema, { id: 'a' }],
    ['check', checkRequestSchema, {}],
    ['check', checkRequestSchema, { id: 'a' }],
    ['list', listRequestSchema, {}],
    [
      'list',
      listRequestSchema,
      { network: 'n', workload: 'w', kind: 'vm', state: 'attached', limit: 9, cursor: 'a' },
    ],
    ['network.list', networkListRequestSchema, { limit: 1_000, cursor: 'volt0' }],
    ['network.put', networkPutRequestSchema, { network: 'n', revision: 3, subnet: '10.0.0.0/24' }],
  ] as const)('%s is taken', ([, schema, request]) => {
    expect(parseRequest(schema, decode(encode(request)))).toEqual(request);
  });

  test.for([
    ['detach', detachRequestSchema, { id: 'a', generation: 0 }, 'generation'],
    ['detach', detachRequestSchema, { id: 'a', generation: 1.5 }, 'generation'],
    ['detach', detachRequestSchema, { id: 'a', force: true }, 'force'],
    ['detach', detachRequestSchema, {}, 'id'],
    ['get', getRequestSchema, {}, 'id'],
    ['get', getRequestSchema, { id: 'a', more: 1 }, 'more'],
    ['check', checkRequestSchema, { id: '' }, 'id'],
    ['list', listRequestSchema, { limit: 0 }, 'limit'],
    ['list', listRequestSchema, { limit: 1_001 }, 'limit'],
    ['list', listRequestSchema, { state: 'gone' }, 'state'],
    ['network.put', networkPutRequestSchema, { revision: '3' }, 'revision'],
  ] as const)('%s %j %j is refused', ([, schema, request, path]) => {
    const error = thrownBy(() => parseRequest(schema, request));
    expect([error.code, error.details?.['path']]).toEqual(['INVALID_REQUEST', path]);
  });
});

describe('answers', () => {
  test('an attachment survives the wire', () => {
    const answer = { attachment, replayed: true };
    expect(attachAnswerSchema.parse(decodeAnswer(encodeAnswer(answer)))).toEqual(answer);
  });

  test('an attachment without a device says so with nil', () => {
    const answer = { attachment: { ...attachment, device: null }, replayed: false };
    expect(attachAnswerSchema.parse(decodeAnswer(encodeAnswer(answer)))).toEqual(answer);
  });

  test('keys of a newer agent are no obstacle', () => {
    const newer = { attachment: { ...attachment, offload: 'x' }, replayed: false, ms: 1 };
    expect(attachAnswerSchema.parse(newer)).toEqual({ attachment, replayed: false });
  });
});

describe('contentKey', () => {
  const same: [string, AttachRequest, AttachRequest][] = [
    [
      'request id, labels and dryRun',
      vmRequest,
      { ...vmRequest, requestId: 'r', labels: {}, dryRun: true },
    ],
    ['defaults of a TAP', vmRequest, { ...vmRequest, tap: { queues: 1, vnetHdr: true } }],
    ['an empty tap', vmRequest, { ...vmRequest, tap: {} }],
    ['the default name', containerRequest, { ...containerRequest, ifname: 'eth0' }],
    ['the derived MAC', vmRequest, { ...vmRequest, mac: '22:86:4c:46:31:c6' }],
    ['no port maps', vmRequest, { ...vmRequest, ports: [] }],
    ['no limits', vmRequest, { ...vmRequest, bandwidth: {} }],
    [
      'the order of port maps',
      {
        ...vmRequest,
        ports: [
          { protocol: 'tcp', hostPort: 80, port: 80 },
          { protocol: 'udp', hostPort: 53, port: 53 },
        ],
      },
      {
        ...vmRequest,
        ports: [
          { port: 53, hostPort: 53, protocol: 'udp' },
          { port: 80, hostPort: 80, protocol: 'tcp' },
        ],
      },
    ],
  ];
  test.for(same)('%s make no difference', ([, one, other]) => {
    expect(contentKey(one)).toBe(contentKey(other));
  });

  const different: [string, AttachRequest, AttachRequest][] = [
    ['another workload', vmRequest, { ...vmRequest, workload: 'vm-b' }],
    ['another network', vmRequest, { ...vmRequest, network: 'volt1' }],
    ['an address', vmRequest, { ...vmRequest, addresses: ['10.42.0.5'] }],
    ['an MTU', vmRequest, { ...vmRequest, mtu: 1_500 }],
    ['another MAC', vmRequest, { ...vmRequest, mac: '02:00:00:00:00:01' }],
    ['another number of queues', vmRequest, { ...vmRequest, tap: { queues: 2 } }],
    ['an owner', vmRequest, { ...vmRequest, tap: { ownerUid: 0 } }],
    ['another interface name', containerRequest, { ...containerRequest, ifname: 'eth1' }],
    ['no namespace', containerRequest, { ...containerRequest, netns: undefined }],
    ['a time to live', vmRequest, { ...vmRequest, leaseTtlSeconds: 60 }],
  ];
  test.for(different)('%s makes a difference', ([, one, other]) => {
    expect(contentKey(one)).not.toBe(contentKey(other));
  });

  test('a namespace counts by what it is, not by its path', () => {
    const elsewhere = { ...containerRequest, netns: '/proc/4711/ns/net' };
    const identity = { netns: '4:4026532008' };
    expect(contentKey(containerRequest, identity)).toBe(contentKey(elsewhere, identity));
    expect(contentKey(containerRequest, identity)).not.toBe(
      contentKey(containerRequest, { netns: '4:4026532009' }),
    );
  });
});
