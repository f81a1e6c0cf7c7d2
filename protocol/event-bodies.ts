import { z } from 'zod';
import { attachmentSchema, checkAnswerSchema } from './attachment.ts';
import type { EventType } from './events.ts';
import { networkPutAnswerSchema } from './network.ts';

/** In the body of every event: the request that it is the outcome of, and how long its phases took. */
const outcome = {
  requestId: z.string(),
  /** Milliseconds by phase: `ipam`, `kernel`, `publish`. */
  durationMs: z.record(z.string(), z.number()),
};

/** As an answer carries it, too. `code` may be one of a newer agent. */
export const errorSchema = z.object({
  code: z.string(),
  message: z.string(),
  retryable: z.boolean(),
  retryAfterMs: z.number().optional(),
  details: z.record(z.string(), z.unknown()).optional(),
});

const attached = z.object({ ...attachmentSchema.shape, ...outcome });

/** What the body of each event type holds, read as answers are: keys that are not known here are left out. */
export const eventBodySchemas = {
  attached,
  updated: attached,
  /** The attachment as it was, or what its lease tells of it, and why it ended. */
  detached: attached.partial().extend({
    id: z.string(),
    host: z.string(),
    state: z.literal('detached'),
    /** One of DETACHED_REASONS; a newer agent may have more. With the last two there may be no attachment, but a lease. */
    reason: z.string(),
    ...outcome,
  }),
  failed: z.object({
    error: errorSchema,
    operation: z.string(),
    request: z.record(z.string(), z.unknown()),
    ...outcome,
  }),
  'network-changed': z.union([
    z.object({ ...networkPutAnswerSchema.shape, ...outcome }),
    z.object({ network: z.string(), deleted: z.literal(true), ...outcome }),
  ]),
  /** What differed and what was done; of the firewall, with the host alone. */
  repaired: z.looseObject({
    ...outcome,
    id: z.string().optional(),
    generation: z.int().optional(),
    workload: z.string().optional(),
    network: z.string().optional(),
    host: z.string(),
    device: attachmentSchema.shape.device.optional(),
    /** One of REPAIR_ACTIONS; a newer agent may have more. */
    action: z.string(),
    differences: checkAnswerSchema.shape.differences,
  }),
  suspect: z.object({ host: z.string(), ...outcome }),
  recovering: z.object({ epoch: z.string(), awaiting: z.array(z.string()).readonly(), ...outcome }),
  recovered: z.object({ epoch: z.string(), missed: z.array(z.string()).readonly(), ...outcome }),
  'host-up': z.object({
    host: z.string(),
    bootId: z.string(),
    /** `live`, `suspect` or `unknown`; a newer agent may have more. */
    before: z.string(),
    rebooted: z.boolean(),
    kept: z.array(z.string()).readonly(),
    released: z.array(z.string()).readonly(),
    ...outcome,
  }),
  'host-down': z.object({
    host: z.string(),
    reason: z.string(),
    released: z.int(),
    ...outcome,
  }),
} as const satisfies Record<EventType, z.ZodType>;

/** The same as types. */
export type EventBodies = {
  [Type in EventType]: z.infer<(typeof eventBodySchemas)[Type]>;
};
