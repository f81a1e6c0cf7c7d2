import { z } from 'zod';
import { HOST_PATTERN, NETWORK_PATTERN } from './names.ts';

/** Where a lease stands: `suspect` and `expired` ones are held all the same, until they are given back. */
const LEASE_STATES = ['held', 'suspect', 'expired'] as const;
export const HOST_STATES = ['live', 'joining', 'suspect', 'awaited'] as const;
export const LEDGER_STATES = ['armed', 'arming', 'recovering', 'unclaimed'] as const;

const host = z.string().regex(HOST_PATTERN, 'must be a host id');
/** What the page before ended with. */
const cursor = z.string().max(160).optional();

export const ledgerLeasesRequestSchema = z.strictObject({
  network: z.string().regex(NETWORK_PATTERN, 'must be a network').optional(),
  host: host.optional(),
  state: z.enum(LEASE_STATES).optional(),
  limit: z.int().min(1).optional(),
  cursor,
});
export const ledgerHostsRequestSchema = z.strictObject({
  limit: z.int().min(1).optional(),
  cursor,
});
export const ledgerForgetRequestSchema = z.strictObject({ host });
export const ledgerCheckRequestSchema = z.strictObject({
  repair: z.boolean().optional(),
  /** Where the answer before ended. */
  cursor: z.string().max(1_024).optional(),
});

/** The cursor of a check, which only agents read: a part of the ledger, or the host after which it goes on. */
export const ledgerCheckPositionSchema = z.strictObject({
  ledger: z
    .strictObject({
      stage: z.int().min(0),
      after: z.string().optional(),
      name: z.string().optional(),
      part: z.int().min(0).optional(),
      cursor: z.string().optional(),
    })
    .optional(),
  hosts: host.optional(),
});
export type LedgerCheckPosition = z.infer<typeof ledgerCheckPositionSchema>;

export type LedgerLeasesRequest = z.infer<typeof ledgerLeasesRequestSchema>;
export type LedgerHostsRequest = z.infer<typeof ledgerHostsRequestSchema>;
export type LedgerCheckRequest = z.infer<typeof ledgerCheckRequestSchema>;

const ledgerLeaseSchema = z.object({
  id: z.string(),
  generation: z.int(),
  network: z.string(),
  workload: z.string(),
  kind: z.enum(['vm', 'container']),
  host: z.string(),
  mac: z.string(),
  addresses: z.array(z.string()),
  /** RFC 3339, as all times; of the ledger's clock. */
  grantedAt: z.string(),
  expiresAt: z.string().optional(),
  state: z.enum(LEASE_STATES),
});

export const ledgerLeasesAnswerSchema = z.object({
  leases: z.array(ledgerLeaseSchema),
  cursor: z.string().optional(),
});

export const ledgerHostsAnswerSchema = z.object({
  hosts: z.array(
    z.object({
      host: z.string(),
      state: z.enum(HOST_STATES),
      machineId: z.string().optional(),
      /** Of the agent's state folder. */
      agentId: z.string().optional(),
      bootId: z.string().optional(),
      /** Boots of the machines that call themselves this host: all are refused until an operator decides. */
      clones: z.array(z.string()).optional(),
      /** Of its last heartbeat. */
      seenAt: z.string().optional(),
      leases: z.int(),
    }),
  ),
  /** Leases are granted while it is `armed`. */
  state: z.enum(LEDGER_STATES),
  cursor: z.string().optional(),
});

export const ledgerForgetAnswerSchema = z.object({
  host: z.string(),
  /** False for a host that the ledger did not know. */
  forgotten: z.boolean(),
  /** How many leases ended. */
  released: z.int(),
});

export const ledgerCheckAnswerSchema = z.object({
  inSync: z.boolean(),
  differences: z.array(
    z.object({
      /** The attachment. */
      id: z.string(),
      what: z.string(),
      expected: z.unknown(),
      observed: z.unknown(),
      /** Where it was found; absent for what is wrong in Redis itself. */
      host: z.string().optional(),
      repaired: z.boolean(),
    }),
  ),
  /** Hosts whose kernels and records were compared, and hosts that did not answer. */
  checked: z.array(z.string()),
  silent: z.array(z.string()),
  /** There were more differences than an answer holds. */
  truncated: z.boolean(),
  /** Where the check goes on: the rest is not checked yet. */
  cursor: z.string().optional(),
  /** With it, what is being looked at: `networks`, `hosts up to h12`. */
  progress: z.string().optional(),
});

export type LedgerLease = z.infer<typeof ledgerLeaseSchema>;
export type LedgerLeasesAnswer = z.infer<typeof ledgerLeasesAnswerSchema>;
export type LedgerHostsAnswer = z.infer<typeof ledgerHostsAnswerSchema>;
export type LedgerForgetAnswer = z.infer<typeof ledgerForgetAnswerSchema>;
export type LedgerCheckAnswer = z.infer<typeof ledgerCheckAnswerSchema>;
export type LedgerDifference = LedgerCheckAnswer['differences'][number];
