import { z } from 'zod';
import { AddressError, deriveMac, hostEndMac, IpAddress, MacAddress } from './address.ts';
import { HOSTNAME_PATTERN, ID_PATTERN, isDeviceName, NETWORK_PATTERN } from './names.ts';
import { mtuSchema, NETWORK_TYPES } from './network.ts';

export const KINDS = ['vm', 'container'] as const;
export const STATES = ['attaching', 'attached', 'detaching', 'fenced'] as const;
const DEVICE_TYPES = ['tap', 'veth', 'macvtap', 'macvlan', 'vf'] as const;
const FILTERS = ['full', 'mac', 'none'] as const;
export const PORT_PROTOCOLS = ['tcp', 'udp', 'sctp'] as const;

const id = z.string().regex(ID_PATTERN, 'must be an id: [A-Za-z0-9][A-Za-z0-9._:-]{0,63}');
const network = z.string().regex(NETWORK_PATTERN, 'must be a network: [a-z0-9][a-z0-9_-]{0,14}');
const generation = z.int().min(1);
// It travels in a header of jobs, where a line break would begin another header.
const requestText = z
  .string()
  .regex(/^[^\p{Cc}\p{Cs}]{1,128}$/u, 'must be 1 to 128 characters without control characters');
const requestId = requestText;
const uid = z.int().min(0).max(0xff_ff_ff_fe);
const port = z.int().min(1).max(65_535);
/** From 8 kbit/s to 1 Tbit/s. */
const bitsPerSecond = z.int().min(8_000).max(1e12);

/** A transformation for zod out of a parser of protocol/address.ts. */
const parsing =
  <Value>(parse: (text: string) => Value) =>
  (text: string, context: z.RefinementCtx): Value => {
    try {
      return parse(text);
    } catch (error) {
      if (!(error instanceof AddressError)) throw error;
      context.addIssue({ code: 'custom', message: error.message });
      return z.NEVER;
    }
  };

const address = z
  .string()
  .max(45)
  .transform(parsing((text) => IpAddress.parse(text).toString()));

const mac = z
  .string()
  .max(17)
  .transform(parsing((text) => MacAddress.parse(text)))
  .refine((parsed) => !parsed.isMulticast && !parsed.isZero, 'must be a unicast MAC address')
  // The host's end would have the same address, and the bridge would keep the workload's frames.
  .refine((parsed) => !hostEndMac(parsed).equals(parsed), 'begins with fe, as only host ends do')
  .transform((parsed) => parsed.toString());

const addresses = z
  .array(address)
  .min(1)
  .max(2)
  .refine((given) => given.length < 2 || isIPv6(given[0]) !== isIPv6(given[1]), {
    message: 'must be one address per family',
  })
  .transform((given) => given.toSorted((a, b) => Number(isIPv6(a)) - Number(isIPv6(b))));

const isIPv6 = (text: string | undefined): boolean => text?.includes(':') === true;

const ifname = z.string().refine(isDeviceName, 'must be a device name of 15 bytes at most');

const netns = z
  .string()
  .max(4_096)
  .regex(/^\/[^\0]+$/, 'must be the absolute path of a namespace file');

const labels = z
  .record(z.string().min(1).max(64), z.string().max(256))
  .refine((given) => Object.keys(given).length <= 64, 'must be 64 labels at most');

// The kernel allows 256 queues, but no more descriptors in one packet than this (SCM_MAX_FD), and a claim
// hands over all of them at once.
const MAX_QUEUES = 253;

const tap = z.strictObject({
  queues: z.int().min(1).max(MAX_QUEUES).optional(),
  vnetHdr: z.boolean().optional(),
  ownerUid: uid.optional(),
  ownerGid: uid.optional(),
});

const portMap = z.strictObject({
  protocol: z.enum(PORT_PROTOCOLS),
  hostPort: port,
  port,
  hostAddress: address.optional(),
});

const hostEnd = ({ protocol, hostAddress = '*', hostPort }: z.infer<typeof portMap>): string =>
  `${protocol} ${hostAddress} ${hostPort}`;

const ports = z
  .array(portMap)
  .max(256)
  .refine((given) => new Set(given.map(hostEnd)).size === given.length, {
    message: 'must not map one host port twice',
  });

const bandwidth = z.strictObject({
  ingressBitsPerSecond: bitsPerSecond.optional(),
  egressBitsPerSecond: bitsPerSecond.optional(),
});

export const attachRequestSchema = z
  .strictObject({
    id,
    workload: id,
    kind: z.enum(KINDS),
    network,
    requestId: requestId.optional(),
    netns: netns.optional(),
    ifname: ifname.optional(),
    addresses: addresses.optional(),
    mac: mac.optional(),
    mtu: mtuSchema.optional(),
    hostname: z.string().regex(HOSTNAME_PATTERN, 'must be an RFC 1123 host name').optional(),
    tap: tap.optional(),
    ports: ports.optional(),
    bandwidth: bandwidth.optional(),
    leaseTtlSeconds: z.int().min(1).max(31_536_000).optional(),
    dryRun: z.boolean().optional(),
    labels: labels.optional(),
  })
  .superRefine((request, context) => {
    const refuse = (key: keyof typeof request, message: string): void => {
      if (request[key] !== undefined) context.addIssue({ code: 'custom', path: [key], message });
    };
    if (request.kind === 'vm') {
      refuse('netns', 'is for containers');
      refuse('ifname', 'is for containers');
    } else {
      refuse('tap', 'is for VMs');
      if (request.netns === undefined) refuse('ifname', 'needs netns');
    }
  });

export const detachRequestSchema = z.strictObject({
  id,
  generation: generation.optional(),
  requestId: requestId.optional(),
});

/** An update: keys that are left out stay as they are, and keys that are given replace what was there. */
export const updateRequestSchema = z.strictObject({
  id,
  generation: generation.optional(),
  requestId: requestId.optional(),
  ports: ports.optional(),
  bandwidth: bandwidth.optional(),
  labels: labels.optional(),
  /** Further addresses that the port filter lets through, among those that the network excludes from leases. */
  filterAddresses: z.array(address).max(64).optional(),
});

export const getRequestSchema = z.strictObject({ id });

export const checkRequestSchema = z.strictObject({ id: id.optional() });
export const cordonRequestSchema = z
  .strictObject({ cordoned: z.boolean(), reason: requestText.optional() })
  .refine(({ cordoned, reason }) => cordoned || reason === undefined, {
    path: ['reason'],
    message: 'is for cordoned: true',
  });

const limit = z.int().min(1).max(1_000);

export const listRequestSchema = z
  .strictObject({
    /** Lists what is attached in the whole fleet, and not on this host alone. */
    allHosts: z.boolean().optional(),
    network: network.optional(),
    workload: id.optional(),
    kind: z.enum(KINDS).optional(),
    state: z.enum(STATES).optional(),
    /** All of these, with these values. */
    labels: labels.optional(),
    limit: limit.optional(),
    /** As the page before gave it: an id; with `allHosts` a network, a slash, and an id or nothing. */
    cursor: z.string().max(80).optional(),
  })
  .superRefine(({ allHosts = false, state, labels: wanted, cursor }, context) => {
    const refuse = (path: string, message: string): void =>
      context.addIssue({ code: 'custom', path: [path], message });
    if (allHosts && state !== undefined) refuse('state', 'is known on its host alone');
    if (allHosts && wanted !== undefined) refuse('labels', 'are known on their host alone');
    if (cursor === undefined) return;
    const [at = '', last, ...rest] = cursor.split('/');
    const isPlace = NETWORK_PATTERN.test(at) && (last === '' || ID_PATTERN.test(last ?? ''));
    const isCursor = allHosts ? isPlace && rest.length === 0 : ID_PATTERN.test(cursor);
    if (!isCursor) refuse('cursor', 'must be that of the answer before');
  });

/** The rest of the keys are the network's: `parseNetwork` checks them. */
export const networkPutRequestSchema = z.looseObject({ revision: z.int().min(1).optional() });
export const networkGetRequestSchema = z.strictObject({ network });
export const networkDeleteRequestSchema = z.strictObject({ network });
export const networkListRequestSchema = z.strictObject({
  limit: limit.optional(),
  cursor: network.optional(),
});

export type AttachRequest = z.infer<typeof attachRequestSchema>;
export type DetachRequest = z.infer<typeof detachRequestSchema>;
export type UpdateRequest = z.infer<typeof updateRequestSchema>;
export type GetRequest = z.infer<typeof getRequestSchema>;
export type CheckRequest = z.infer<typeof checkRequestSchema>;
export type CordonRequest = z.infer<typeof cordonRequestSchema>;
export type ListRequest = z.infer<typeof listRequestSchema>;
export type FleetListRequest = Omit<ListRequest, 'allHosts' | 'state' | 'labels'>;
export type NetworkListRequest = z.infer<typeof networkListRequestSchema>;

// Answers and events are read loosely, keys that are not known here left out: a newer agent may say more.

const deviceSchema = z.object({
  type: z.enum(DEVICE_TYPES),
  name: z.string(),
  ifindex: z.int(),
  /** The host's end's own: for `tap` and `veth` it begins with `fe` and is not the workload's. */
  mac: z.string(),
  mtu: z.int(),
  /** The bridge that it is a port of. */
  bridge: z.string().optional(),
  /** veth: the workload's end. */
  peer: z
    .object({
      name: z.string(),
      ifindex: z.int(),
      mac: z.string(),
      netns: z.string().optional(),
    })
    .optional(),
  /** tap, macvtap: what a holder of its descriptors has to know. */
  queues: z.int().optional(),
  vnetHdr: z.boolean().optional(),
  vnetHdrSize: z.int().optional(),
  /** macvtap: its character device. */
  path: z.string().optional(),
  /** vf */
  pciAddress: z.string().optional(),
  driver: z.string().optional(),
  /** vf, of a VM: the file of its IOMMU group. */
  iommuGroup: z.string().optional(),
});

export const attachmentSchema = z.object({
  id: z.string(),
  /** Fencing token: of two with one id, the higher is the newer one, in the whole fleet. */
  generation: z.int(),
  workload: z.string(),
  kind: z.enum(KINDS),
  network: z.string(),
  type: z.enum(NETWORK_TYPES),
  host: z.string(),
  state: z.enum(STATES),
  /** The workload's own: the guest's NIC, the container's interface. */
  mac: z.string(),
  /** The host's end; null for an isolated container. */
  device: deviceSchema.nullable(),
  filter: z.enum(FILTERS),
  netns: z.string().optional(),
  /** `10.42.0.5/24`, with the gateway of its family. */
  addresses: z.array(z.object({ address: z.string(), gateway: z.string().optional() })),
  routes: z.array(z.object({ to: z.string(), via: z.string() })),
  dns: z.object({
    servers: z.array(z.string()).optional(),
    search: z.array(z.string()).optional(),
    domain: z.string().optional(),
  }),
  ports: z.array(
    z.object({
      protocol: z.enum(PORT_PROTOCOLS),
      hostPort: z.int(),
      port: z.int(),
      hostAddress: z.string().optional(),
    }),
  ),
  bandwidth: z.object({
    ingressBitsPerSecond: z.int().optional(),
    egressBitsPerSecond: z.int().optional(),
  }),
  /** What the port filter lets through beside `addresses`; absent when nothing. */
  filterAddresses: z.array(z.string()).optional(),
  lease: z.object({
    generation: z.int(),
    grantedAt: z.string(),
    expiresAt: z.string().optional(),
  }),
  createdAt: z.string(),
  labels: z.record(z.string(), z.string()),
});

export const attachAnswerSchema = z.object({
  attachment: attachmentSchema,
  /** True: the id was attached already with the same content, and nothing was done. */
  replayed: z.boolean(),
  /** Why the workload may have no traffic: of a bridge that is somebody else's, as it is now. Absent without any. */
  warnings: z.array(z.string()).optional(),
});

/** The answer to an attach with `dryRun`. */
export const dryRunAnswerSchema = z.object({
  dryRun: z.literal(true),
  /** True: the id is attached already with the same content, and nothing would be done. */
  replayed: z.boolean(),
  /** The lease that it would get, as far as it can be said now. */
  lease: z.object({ mac: z.string(), addresses: z.array(z.string()) }),
  /** What would be changed in the kernel, in order: `RTM_NEWLINK` of `tap-web`. */
  operations: z.array(z.object({ operation: z.string(), subject: z.string() })),
});

export const detachAnswerSchema = z.object({
  /** False where there was nothing to detach. */
  detached: z.boolean(),
  /** True: the device is out of use; its deletion and the release of the lease follow. */
  releasing: z.boolean(),
});

/** The attachment as it is now. */
export const updateAnswerSchema = z.object({ attachment: attachmentSchema });

export const getAnswerSchema = z.object({ attachment: attachmentSchema });

/** One thing that is not as recorded. null: not there. */
const differenceSchema = z.object({
  id: z.string(),
  what: z.string(),
  expected: z.unknown(),
  observed: z.unknown(),
});

export const checkAnswerSchema = z.object({
  inSync: z.boolean(),
  differences: z.array(differenceSchema),
  /** What the agent would do now to put the host right; absent from agents that do not say. */
  plan: z.array(z.object({ id: z.string(), action: z.string(), reason: z.string() })).optional(),
  /** What was not compared (`ledger`), and why; `inSync` is false then. Absent where everything was compared. */
  notCompared: z
    .array(z.object({ what: z.string(), code: z.string(), message: z.string() }))
    .optional(),
  /** True where there is more than an answer holds. */
  truncated: z.boolean().optional(),
});

export const cordonAnswerSchema = z.object({
  host: z.string(),
  cordoned: z.boolean(),
  /** As the operator has given it. */
  reason: z.string().optional(),
  /** When the host was cordoned. */
  since: z.string().optional(),
});

export const listAnswerSchema = z.object({
  attachments: z.array(attachmentSchema),
  /** More follows; a request with it gets the next page. */
  cursor: z.string().optional(),
});

/** What the ledger knows of an attachment, wherever it is. */
const fleetAttachmentSchema = z.object({
  id: z.string(),
  generation: z.int(),
  host: z.string(),
  network: z.string(),
  workload: z.string(),
  kind: z.enum(KINDS),
  mac: z.string(),
  /** `10.42.0.5/24`. */
  addresses: z.array(z.string()),
  hostname: z.string().optional(),
  grantedAt: z.string(),
  expiresAt: z.string().optional(),
});

/** The answer to a list with `allHosts`. */
export const fleetListAnswerSchema = z.object({
  attachments: z.array(fleetAttachmentSchema),
  /** Networks for which the ledger gives no news now: `attachments` has what was known at `asOf`. */
  behind: z.array(
    z.object({ network: z.string(), asOf: z.string(), code: z.string(), message: z.string() }),
  ),
  /** More follows; a request with it gets the next page, which may be empty. */
  cursor: z.string().optional(),
});

export type Attachment = z.infer<typeof attachmentSchema>;
export type FleetAttachment = z.infer<typeof fleetAttachmentSchema>;
export type FleetListAnswer = z.infer<typeof fleetListAnswerSchema>;
export type AttachAnswer = z.infer<typeof attachAnswerSchema>;
export type DryRunAnswer = z.infer<typeof dryRunAnswerSchema>;
export type DetachAnswer = z.infer<typeof detachAnswerSchema>;
export type UpdateAnswer = z.infer<typeof updateAnswerSchema>;
export type GetAnswer = z.infer<typeof getAnswerSchema>;
export type Difference = z.infer<typeof differenceSchema>;
export type CheckAnswer = z.infer<typeof checkAnswerSchema>;
export type CordonAnswer = z.infer<typeof cordonAnswerSchema>;
export type ListAnswer = z.infer<typeof listAnswerSchema>;

/**
 * Equal for requests of the same content: all of the request after defaults but `requestId`, `labels` and
 * `dryRun`; a namespace counts by what it is (`netns`: device and inode), not by its path. The MTU of the
 * network is left out: otherwise a change of the network would look like another request.
 */
export function contentKey(request: AttachRequest, identity: { netns?: string } = {}): string {
  const { requestId: _request, labels: _labels, dryRun: _dryRun, netns: path, ...rest } = request;
  return canonical({
    ...rest,
    mac: request.mac ?? deriveMac(request.id).toString(),
    ports: (request.ports ?? []).map(canonical).toSorted(),
    bandwidth: request.bandwidth ?? {},
    ...(request.kind === 'vm' && { tap: { queues: 1, vnetHdr: true, ...request.tap } }),
    ...(path !== undefined && { netns: identity.netns ?? path, ifname: request.ifname ?? 'eth0' }),
  });
}

/** JSON with keys in order and without undefined values. */
export function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const entries = Object.entries(value)
    .filter(([, element]) => element !== undefined)
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, element]) => `${JSON.stringify(key)}:${canonical(element)}`);
  return `{${entries.join(',')}}`;
}
