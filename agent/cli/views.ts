import type {
  Attachment,
  CheckAnswer,
  Difference,
  FleetListAnswer,
  DryRunAnswer,
} from '#protocol/attachment.ts';
import type { LedgerDifference, LedgerHostsAnswer, LedgerLease } from '#protocol/ledger.ts';
import type { WaitingJobs } from '../bus/waiting-jobs.ts';
import type { Labelled, Labels } from './whole-fleet.ts';
import { details, type Line, type Page, table } from './page.ts';
import { age } from './units.ts';

interface TableOptions {
  /** With a column for them. */
  readonly labels?: boolean;
  readonly now?: number;
}

/** Attachments as a table, one a row. */
export const attachmentTable = (
  attachments: readonly Attachment[],
  { labels = false, now = Date.now() }: TableOptions = {},
): Page =>
  table(
    [
      ...['ID', 'KIND', 'NETWORK', 'STATE', 'DEVICE', 'ADDRESSES', 'MAC', 'AGE'],
      ...(labels ? ['LABELS'] : []),
    ],
    attachments.map((one) => [
      one.id,
      one.kind,
      one.network,
      one.state,
      one.device?.name,
      one.addresses.map(({ address }) => address).join(','),
      one.mac,
      age(one.createdAt, now),
      ...(labels ? [pairs(one.labels)] : []),
    ]),
  );

/** The same of the whole fleet. */
export const fleetTable = (
  attachments: readonly Labelled[],
  { labels = false, now = Date.now() }: TableOptions = {},
): Page =>
  table(
    [
      ...['ID', 'HOST', 'KIND', 'NETWORK', 'ADDRESSES', 'MAC', 'GENERATION', 'AGE'],
      ...(labels ? ['LABELS'] : []),
    ],
    attachments.map((one) => [
      one.id,
      one.host,
      one.kind,
      one.network,
      one.addresses.join(','),
      one.mac,
      one.generation,
      age(one.grantedAt, now),
      ...(labels ? [one.labels && pairs(one.labels)] : []),
    ]),
  );

const pairs = (labels: Labels): string =>
  Object.entries(labels)
    .map(([key, value]) => `${key}=${value}`)
    .join(',');

/** Why a network is shown in an earlier state, and of when that is. */
export const behindLine = (
  { network, asOf, code, message }: FleetListAnswer['behind'][number],
  now: number = Date.now(),
): Line => `network ${network} as it was ${age(asOf, now)} ago (${asOf}): ${code}: ${message}`;

/** What an attach would do: the lease, and the changes in the kernel in their order. */
export function dryRunDetails({ replayed, lease, operations }: DryRunAnswer): Page {
  const known = details([
    ['mac', lease.mac],
    ...lease.addresses.map((address) => ['address', address] as const),
  ]);
  if (replayed) return ['attached already: nothing would be done', ...known];
  const rows = operations.map(({ operation, subject }) => [operation, subject]);
  return [...known, '', ...table(['OPERATION', 'SUBJECT'], rows)];
}

/** One attachment, everything that its answer says. */
export function attachmentDetails(attachment: Attachment): Page {
  const { device, lease, labels, bandwidth } = attachment;
  const peer = device?.peer;
  return details([
    ['id', attachment.id],
    ['generation', attachment.generation],
    ['workload', `${attachment.workload} (${attachment.kind})`],
    ['network', `${attachment.network} (${attachment.type}) on host ${attachment.host}`],
    ['state', attachment.state],
    ['mac', attachment.mac],
    ...attachment.addresses.map(
      ({ address, gateway }) =>
        ['address', gateway === undefined ? address : `${address} via ${gateway}`] as const,
    ),
    ['device', device === null ? 'none' : deviceText(device)],
    [
      'peer',
      peer &&
        `${peer.name}, ifindex ${peer.ifindex}, ${peer.mac}${peer.netns === undefined ? ' on the host' : ` in ${peer.netns}`}`,
    ],
    ['namespace', peer?.netns === undefined ? attachment.netns : undefined],
    ...(attachment.ports ?? []).map(
      ({ protocol, hostAddress, hostPort, port }) =>
        ['port', `${hostAddress ?? '*'}:${hostPort} -> ${port}/${protocol}`] as const,
    ),
    ['ingress', bandwidth?.ingressBitsPerSecond && `${bandwidth.ingressBitsPerSecond} bit/s`],
    ['egress', bandwidth?.egressBitsPerSecond && `${bandwidth.egressBitsPerSecond} bit/s`],
    ['filter', attachment.filter],
    ['lease', leaseText(lease)],
    ...Object.entries(labels ?? {}).map(([key, value]) => ['label', `${key}=${value}`] as const),
  ]);
}

function deviceText(device: NonNullable<Attachment['device']>): string {
  const { type, name, ifindex, mac, mtu, queues, vnetHdr, vnetHdrSize } = device;
  const text = `${type} ${name}, ifindex ${ifindex}, ${mac}, mtu ${mtu}`;
  if (queues === undefined) return text;
  const header = vnetHdr === true ? `vnet header of ${vnetHdrSize ?? 12} bytes` : 'no vnet header';
  return `${text}, ${queues === 1 ? '1 queue' : `${queues} queues`}, ${header}`;
}

const leaseText = ({ grantedAt, expiresAt }: Attachment['lease']): string =>
  expiresAt === undefined ? `since ${grantedAt}` : `since ${grantedAt}, until ${expiresAt}`;

/** Leases as a table, one a row. */
export const leaseTable = (leases: readonly LedgerLease[], now: number = Date.now()): Page =>
  table(
    ['ID', 'NETWORK', 'ADDRESSES', 'MAC', 'HOST', 'STATE', 'AGE'],
    leases.map((one) => [
      one.id,
      one.network,
      one.addresses.map((address) => address.replace(/\/.*/, '')).join(','),
      one.mac,
      one.host,
      one.state,
      age(one.grantedAt, now),
    ]),
  );

/** Hosts as a table, one a row. */
export const hostTable = (hosts: LedgerHostsAnswer['hosts'], now: number = Date.now()): Page =>
  table(
    ['HOST', 'STATE', 'LEASES', 'HEARD'],
    hosts.map(({ host, state, clones, leases, seenAt }) => [
      host,
      clones === undefined ? state : `${state}, claimed by ${clones.length}`,
      leases,
      seenAt === undefined ? undefined : `${age(seenAt, now)} ago`,
    ]),
  );

/** Jobs that wait as a table, one host a row. */
export const jobTable = (
  hosts: readonly (WaitingJobs & { readonly ledger?: string })[],
  now: number = Date.now(),
): Page =>
  table(
    ['HOST', 'JOBS', 'OLDEST', 'CONSUMER', 'LEDGER'],
    hosts.map(({ host, jobs, since, consumer, ledger }) => [
      host,
      jobs,
      since && `${age(since, now)} ago`,
      consumer ? 'yes' : 'no',
      ledger,
    ]),
  );

/** The findings of `ledger check`, one difference a row. */
export const ledgerDifferenceTable = (differences: readonly LedgerDifference[]): Page =>
  table(
    ['ID', 'HOST', 'WHAT', 'EXPECTED', 'OBSERVED', 'REPAIRED'],
    differences.map(({ id, host, what, expected, observed, repaired }) => [
      id,
      host,
      what,
      valueText(expected),
      valueText(observed),
      repaired ? 'yes' : 'no',
    ]),
  );

/** What `check` found, one difference a row. */
export const differenceTable = (differences: readonly Difference[]): Page =>
  table(
    ['ID', 'WHAT', 'EXPECTED', 'OBSERVED'],
    differences.map(({ id, what, expected, observed }) => [
      id,
      what,
      valueText(expected),
      valueText(observed),
    ]),
  );

/** What `check` could not compare, and why. */
export const notComparedLine = ({
  what,
  code,
  message,
}: NonNullable<CheckAnswer['notCompared']>[number]): Line =>
  `not compared with the ${what}: ${code}: ${message}`;

/** What the agent is about to do about the differences, one action a row; nothing without actions. */
export const planTable = (plan: NonNullable<CheckAnswer['plan']> = []): Page =>
  plan.length === 0
    ? []
    : [
        '',
        ...table(
          ['ID', 'ACTION', 'REASON'],
          plan.map(({ id, action, reason }) => [id, action, reason]),
        ),
      ];

export function valueText(value: unknown): string {
  if (value === null || value === undefined) return 'absent';
  return typeof value === 'string' ? value : JSON.stringify(value);
}
