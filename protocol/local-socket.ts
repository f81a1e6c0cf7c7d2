import { z } from 'zod';
import { attachmentSchema } from './attachment.ts';
import { LEDGER_STATES } from './ledger.ts';

// The packets of an agent's local socket: JSON, one packet in, an answer out. docs/protocol.md says how they travel.

export const LOCAL_OPS = ['claim', 'clean', 'health', 'request', 'settle'] as const;

export type LocalOp = (typeof LOCAL_OPS)[number];

/** An error of ours in place of zod's, which tell what they expected by the names of its types. */
const text = z.string('must be a string');

/** By `op`. Keys that are not known here are passed over. */
export const localPacketSchemas = {
  /** Asks for the descriptors of a TAP. */
  claim: z.object({
    op: z.literal('claim'),
    id: text,
    generation: z.int('must be an integer').nullable().optional(),
  }),
  clean: z.object({ op: z.literal('clean') }),
  health: z.object({ op: z.literal('health') }),
  /** Asks what `host.<host>.<operation>` is asked on the bus. */
  request: z.object({
    op: z.literal('request'),
    operation: text,
    /** The host that the packet is meant for, if its sender says so. */
    host: text.optional(),
    body: z.unknown().optional(),
    timeoutMs: z.number('must be a number of milliseconds').positive().optional(),
    traceparent: text.optional(),
    tracestate: text.optional(),
  }),
  settle: z.object({ op: z.literal('settle') }),
} as const satisfies Record<LocalOp, z.ZodType>;

export const localPacketSchema = z.discriminatedUnion(
  'op',
  [
    localPacketSchemas.claim,
    localPacketSchemas.clean,
    localPacketSchemas.health,
    localPacketSchemas.request,
    localPacketSchemas.settle,
  ],
  `must be a packet {"op": …}, with one of ${LOCAL_OPS.map((op) => `"${op}"`).join(', ')}`,
);

export type LocalPacket = z.input<typeof localPacketSchema>;
export type LocalPackets = { [Op in LocalOp]: z.output<(typeof localPacketSchemas)[Op]> };

const healthSchema = z.object({
  version: z.string(),
  host: z.string(),
  hostName: z.string().optional(),
  pid: z.int(),
  startedAt: z.string(),
  nats: z.enum(['connecting', 'connected', 'closed']),
  requests: z.string(),
  jobs: z.string(),
  redis: z.object({
    state: z.enum(['connecting', 'ready', 'unavailable', 'incompatible']),
    reason: z.string().optional(),
  }),
  session: z.object({
    state: z.enum([...LEDGER_STATES, 'unknown', 'refused']),
    open: z.boolean(),
    awaiting: z.array(z.string()).readonly(),
    reason: z.string().optional(),
  }),
  firewall: z.string(),
  reconcile: z.enum(['agrees', 'differs', 'alone', 'unknown']),
  attachments: z.int(),
  unfinished: z.int(),
  eventsPending: z.int(),
  eventsSetAside: z.int(),
  clockAheadMs: z.object({ ledger: z.number().optional(), stream: z.number().optional() }),
  unexpectedErrors: z.object({
    count: z.int(),
    at: z.string().optional(),
    message: z.string().optional(),
  }),
  conditions: z
    .array(
      z.object({
        name: z.string(),
        area: z.string(),
        blocks: z.boolean(),
        reason: z.string(),
        since: z.string(),
        remedy: z.string(),
      }),
    )
    .readonly(),
});

/** What is answered to each `op` but `request`, which has the answer of its operation; or an error, as on the bus. */
export const localAnswerSchemas = {
  claim: z.object({ attachment: attachmentSchema }),
  clean: z.object({ host: z.string(), networks: z.array(z.string()) }),
  health: z.object({ health: healthSchema }),
  settle: z.object({ host: z.string(), settled: z.boolean() }),
} as const satisfies Record<Exclude<LocalOp, 'request'>, z.ZodType>;

export type LocalAnswers = {
  [Op in keyof typeof localAnswerSchemas]: z.infer<(typeof localAnswerSchemas)[Op]>;
};
