import { readFileSync } from 'node:fs';
import type { AttachRequest } from '#protocol/attachment.ts';
import { fileProblem } from '#protocol/file-problem.ts';
import { parsePort } from './ports.ts';
import { isRecord, parseJsonObject } from './settings.ts';
import { parseBitsPerSecond, parseSeconds, wholeNumber } from './units.ts';
import { UsageError } from './errors.ts';

/** The flags of `voltnet attach`, as the command line has them: text, lists of text, switches. */
export interface AttachFlags {
  readonly file?: string;
  readonly id?: string;
  readonly workload?: string;
  readonly kind?: string;
  readonly network?: string;
  readonly requestId?: string;
  readonly netns?: string;
  readonly ifname?: string;
  readonly address?: readonly string[];
  readonly mac?: string;
  readonly mtu?: string;
  readonly hostname?: string;
  readonly queues?: string;
  /** False with `--no-vnet-hdr`; true when nothing is said. */
  readonly vnetHdr?: boolean;
  readonly owner?: string;
  readonly group?: string;
  readonly port?: readonly string[];
  readonly ingress?: string;
  readonly egress?: string;
  readonly ttl?: string;
  readonly label?: readonly string[];
  readonly dryRun?: boolean;
}

/**
 * The request from the flags and the file, under the keys of the wire; flags win over the file. Only the form of a
 * flag is checked here (numbers, ports, units). The agent checks the request, so that the two never disagree about
 * what is valid.
 */
export function attachRequest(flags: AttachFlags): AttachRequest {
  const given = flags.file === undefined ? {} : readJsonObject(flags.file);
  const request: Record<string, unknown> = { ...given };
  const set = (key: string, value: unknown): void => {
    if (value !== undefined) request[key] = value;
  };
  set('id', flags.id);
  set('workload', flags.workload);
  set('kind', flags.kind);
  set('network', flags.network);
  set('requestId', flags.requestId);
  set('netns', flags.netns);
  set('ifname', flags.ifname);
  // As answers have them, too: with the prefix length of the subnet.
  set(
    'addresses',
    flags.address?.map((one) => one.replace(/\/.*/, '')),
  );
  set('mac', flags.mac);
  set('mtu', wholeNumber('--mtu', flags.mtu));
  set('hostname', flags.hostname);
  set('tap', merged(given['tap'], tapOf(flags)));
  set('ports', flags.port?.map(parsePort));
  set('bandwidth', merged(given['bandwidth'], bandwidthOf(flags)));
  set('leaseTtlSeconds', flags.ttl === undefined ? undefined : parseSeconds(flags.ttl));
  set('labels', merged(given['labels'], labelsOf(flags.label)));
  if (flags.dryRun === true) request['dryRun'] = true;
  if (isAttachRequest(request)) return request;
  const missing = REQUIRED.filter((key) => request[key] === undefined);
  throw new UsageError(`missing ${missing.map((key) => `--${key}`).join(', ')}; the smallest request is:
  voltnet attach --id web --workload vm-web --kind vm --network volt0`);
}

/** Reads one JSON object from a file, or from standard input for `-`. */
export function readJsonObject(file: string): Record<string, unknown> {
  const origin = file === '-' ? 'standard input' : file;
  let content: string;
  try {
    content = readFileSync(file === '-' ? 0 : file, 'utf8');
  } catch (cause) {
    throw new UsageError(`cannot read ${origin}: ${fileProblem(cause)}`, { cause });
  }
  return parseJsonObject(content, origin);
}

function tapOf({ queues, vnetHdr, owner, group }: AttachFlags): Record<string, unknown> {
  return {
    ...(queues !== undefined && { queues: wholeNumber('--queues', queues) }),
    ...(vnetHdr === false && { vnetHdr }),
    ...(owner !== undefined && { ownerUid: wholeNumber('--owner', owner) }),
    ...(group !== undefined && { ownerGid: wholeNumber('--group', group) }),
  };
}

export const bandwidthOf = ({
  ingress,
  egress,
}: Pick<AttachFlags, 'ingress' | 'egress'>): {
  ingressBitsPerSecond?: number;
  egressBitsPerSecond?: number;
} => ({
  ...(ingress !== undefined && { ingressBitsPerSecond: parseBitsPerSecond(ingress) }),
  ...(egress !== undefined && { egressBitsPerSecond: parseBitsPerSecond(egress) }),
});

export function labelsOf(labels: readonly string[] = []): Record<string, string> {
  return Object.fromEntries(
    labels.map((label) => {
      const equals = label.indexOf('=');
      if (equals > 0) return [label.slice(0, equals), label.slice(equals + 1)];
      throw new UsageError(`--label "${label}": write key=value`);
    }),
  );
}

/** A nested object of the file, with the keys of the flags over it; undefined if neither has any. */
function merged(given: unknown, flags: Record<string, unknown>): unknown {
  if (Object.keys(flags).length === 0) return given;
  return isRecord(given) ? { ...given, ...flags } : flags;
}

const REQUIRED = ['id', 'workload', 'kind', 'network'] as const;

// Looks only at the required keys, which the agent would name one at a time. The rest is checked by the agent's
// schema: to load it here would double the time that a command takes.
const isAttachRequest = (request: Record<string, unknown>): request is AttachRequest =>
  REQUIRED.every((key) => request[key] !== undefined);
