import { z } from 'zod';
import { AddressError, IpAddress, MacAddress } from './address.ts';
import { HOSTNAME_PATTERN, ID_PATTERN, isDeviceName, NETWORK_PATTERN } from './names.ts';
import { mtuSchema, NETWORK_TYPES } from './network.ts';

export const KINDS = ['vm', 'container'] as const;
export const STATES = ['attaching', 'attached', 'detaching'] as const;
export const DEVICE_TYPES = ['tap', 'veth', 'macvtap', 'macvlan', 'vf'] as const;
export const FILTERS = ['full', 'mac', 'none'] as const;
export const PORT_PROTOCOLS = ['tcp', 'udp', 'sctp'] as const;

const id = z.string().regex(ID_PATTERN, 'must be an id: [A-Za-z0-9][A-Za-z0-9._:-]{0,63}');
const network = z.string().regex(NETWORK_PATTERN, 'must be a network: [a-z0-9][a-z0-9_-]{0,14}');
const generation = z.int().min(1);
const requestId = z.string().min(1).max(128);
const uid = z.int().min(0).max(0xff_ff_ff_fe);
const port = z.int().min(1).max(65_535);
/** Up to 1 Tbit/s. */
const bitsPerSecond = z.int().min(8_000).max(1e12);

const parses = (parse: (text: string) => unknown) => (text: string, context: z.RefinementCtx) => {
  try {
    parse(text);
  } catch (error) {
    if (!(error instanceof AddressError)) throw error;
    context.addIssue({ code: 'custom', message: error.message });
  }
};

const address = z
  .string()
  .max(45)
  .superRefine(parses((text) => IpAddress.parse(text)))
  .transform((text) => IpAddress.parse(text).toString());

const mac = z
  .string()
  .max(17)
  .superRefine(parses(MacAddress.parse))
  .refine(
    (text) => {
      try {
        const parsed = MacAddress.parse(text);
        return !parsed.isMulticast && !parsed.isZero;
      } catch {
        return true; // reported already
      }
    },
    { message: 'must be a unicast MAC address' },
  )
  .transform((text) => text.toLowerCase());

const ifname = z.string().refine(isDeviceName, 'must be a device name of 15 bytes at most');

const netns = z
  .string()
  .max(4_096)
  .regex(/^\/[^\0]+$/, 'must be the absolute path of a namespace file');

const labels = z
  .record(z.string().min(1).max(64), z.string().max(256))
  .refine((given) => Object.keys(given).length <= 64, 'must be 64 labels at most');

const portMap = z.strictObject({
  protocol: z.enum(PORT_PROTOCOLS),
  hostPort: port,
  port,
  hostAddress: address.optional(),
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
    addresses: z.array(address).min(1).max(2).optional(),
    mac: mac.optional(),
    mtu: mtuSchema.optional(),
    hostname: z.string().regex(HOSTNAME_PATTERN, 'must be an RFC 1123 host name').optional(),
    tap: z
      .strictObject({
        queues: z.int().min(1).max(256).optional(),
        vnetHdr: z.boolean().optional(),
        ownerUid: uid.optional(),
        ownerGid: uid.optional(),
      })
      .optional(),
    ports: z.array(portMap).max(256).optional(),
    bandwidth: bandwidth.optional(),
    leaseTtlSeconds: z.int().min(1).max(31_536_000).optional(),
    dryRun: z.boolean().optional(),
    labels: labels.optional(),
  })
  .superRefine((request, context) => {
    const misplaced =
      request.kind === 'vm' ? (['netns', 'ifname'] as const) : (['tap'] as const);
    for (const key of misplaced) {
      if (request[key] === undefined) continue;
      context.addIssue({ code: 'custom', path: [key], message: `not for kind ${request.kind}` });
    }
    if (request.ifname !== undefined && request.netns === undefined && request.kind !== 'vm') {
      context.addIssue({ code: 'custom', path: ['ifname'], message: 'needs netns' });
    }
    const [first, second] = request.addresses ?? [];
    if (second !== undefined && first?.includes(':') === second.includes(':')) {
      const message = 'must be one address per family';
      context.addIssue({ code: 'custom', path: ['addresses'], message });
    }
  });

export const detachRequestSchema = z.strictObject({
  id,
  generation: generation.optional(),
  requestId: requestId.optional(),
});

export const getRequestSchema = z.strictObject({ id });

export const checkRequestSchema = z.strictObject({ id: id.optional() });

export const listRequestSchema = z.strictObject({
  network: network.optional(),
  workload: id.optional(),
  kind: z.enum(KINDS).optional(),
  state: z.enum(STATES).optional(),
  limit: z.int().min(1).max(1_000).optional(),
  cursor: id.optional(),
});

/** The rest of the keys are the network's: `parseNetwork` checks them. */
export const networkPutRequestSchema = z.looseObject({ revision: z.int().min(1).optional() });
export const networkGetRequestSchema = z.strictObject({ network });
export const networkDeleteRequestSchema = z.strictObject({ network });
export const networkListRequestSchema = z.strictObject({
  limit: z.int().min(1).max(1_000).optional(),
  cursor: network.optional(),
});

export type AttachRequest = z.infer<typeof attachRequestSchema>;
export type DetachRequest = z.infer<typeof detachRequestSchema>;
export type GetRequest = z.infer<typeof getRequestSchema>;
export type CheckRequest = z.infer<typeof checkRequestSchema>;
export type ListRequest = z.infer<typeof listRequestSchema>;
export type NetworkListRequest = z.infer<typeof networkListRequestSchema>;

// Answers and events are read loosely: a newer agent may say more.

const deviceSchema = z.looseObject({
  /** The host's end. Its MAC is not the workload's for `tap` and `veth`: it begins with `fe`. */
  type: z.enum(DEVICE_TYPES),
  name: z.string(),
  ifindex: z.int(),
  mac: z.string(),
  mtu: z.int(),
  /** veth: the workload's end. */
  peer: z
    .looseObject({
      name: z.string(),
      ifindex: z.int(),
      mac: z.string(),
      netns: z.string().optional(),
    })
    .optional(),
  queues: z.int().optional(),
  vnetHdr: z.boolean().optional(),
  vnetHdrSize: z.int().optional(),
  path: z.string().optional(),
  pciAddress: z.string().optional(),
  driver: z.string().optional(),
});

export const attachmentSchema = z.looseObject({
  id: z.string(),
  generation: z.int(),
  workload: z.string(),
  kind: z.enum(KINDS),
  network: z.string(),
  type: z.enum(NETWORK_TYPES),
  host: z.string(),
  state: z.enum(STATES),
  /** The workload's own: the guest's NIC, the container's interface. */
  mac: z.string(),
  /** null for an isolated container. */
  device: deviceSchema.nullable(),
  filter: z.enum(FILTERS),
  netns: z.string().optional(),
  /** `10.42.0.5/24`, with the gateway of its family. */
  addresses: z.array(z.looseObject({ address: z.string(), gateway: z.string().optional() })),
  routes: z.array(z.looseObject({ to: z.string(), via: z.string() })),
  dns: z.looseObject({
    servers: z.array(z.string()).optional(),
    search: z.array(z.string()).optional(),
    domain: z.string().optional(),
  }),
  ports: z.array(portMap),
  bandwidth,
  lease: z.looseObject({
    generation: z.int(),
    grantedAt: z.string(),
    expiresAt: z.string().optional(),
  }),
  createdAt: z.string(),
  labels: z.record(z.string(), z.string()),
});

export type Attachment = z.infer<typeof attachmentSchema>;

export interface AttachAnswer {
  readonly attachment: Attachment;
  /** True: the id was attached already with the same content, and nothing was done. */
  readonly replayed: boolean;
}

export interface DetachAnswer {
  /** False: there was nothing to detach. */
  readonly detached: boolean;
  /** True: the device is out of use; its deletion and the release of the lease follow. */
  readonly releasing: boolean;
}

/** One thing that is not as recorded. `observed` is null where it is missing. */
export interface Difference {
  readonly id: string;
  readonly what: string;
  readonly expected: unknown;
  readonly observed: unknown;
}

export interface CheckAnswer {
  readonly inSync: boolean;
  readonly differences: readonly Difference[];
}

export interface ListAnswer {
  readonly attachments: readonly Attachment[];
  readonly cursor?: string;
}

/**
 * Equal for requests of the same content: all of the request after defaults but `requestId`, `labels` and
 * `dryRun`; a namespace counts by what it is (`netns`: device and inode), not by its path.
 */
export function contentKey(request: AttachRequest, identity: { netns?: string } = {}): string {
  const { requestId: _request, labels: _labels, dryRun: _dryRun, netns: path, ...rest } = request;
  const content = {
    ...rest,
    ...(request.kind === 'vm' && { tap: { queues: 1, vnetHdr: true, ...request.tap } }),
    ...(path !== undefined && { netns: identity.netns ?? path, ifname: request.ifname ?? 'eth0' }),
  };
  return canonical(content);
}

function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const entries = Object.entries(value)
    .filter(([, element]) => element !== undefined)
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, element]) => `${JSON.stringify(key)}:${canonical(element)}`);
  return `{${entries.join(',')}}`;
}
