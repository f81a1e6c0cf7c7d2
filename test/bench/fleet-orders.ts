import { z } from 'zod';

// What the bench tells the processes that play the hosts, and what they answer.

const network = z.object({ network: z.unknown(), revision: z.int() });

export const orderSchema = z.discriminatedUnion('do', [
  /** Makes hosts `h<from>`, `h<from + step>` … below `h<to>`; connections: 0 for one each. */
  z.object({
    do: z.literal('make'),
    url: z.string(),
    nats: z.string().optional(),
    folder: z.string(),
    from: z.int(),
    to: z.int(),
    step: z.int(),
    connections: z.int(),
    boot: z.string(),
    suspectAfterSeconds: z.number(),
    isNew: z.boolean(),
  }),
  /** Their sessions run by themselves, begun one after the other in so long. */
  z.object({ do: z.literal('start'), spreadMs: z.number() }),
  /** Each of them beats once, a few at a time; `most`: no more than so many of them. */
  z.object({ do: z.literal('beat'), most: z.int().optional() }),
  z.object({
    do: z.literal('hold'),
    networks: z.array(network),
    count: z.int(),
    ttlSeconds: z.number().optional(),
  }),
  /** One of them asks for a lease until it is granted. */
  z.object({ do: z.literal('first'), network }),
  /** Agents end, and are made again with what is on disk. */
  z.object({ do: z.literal('restart'), spreadMs: z.number(), boot: z.string() }),
  z.object({ do: z.literal('stop') }),
  z.object({ do: z.literal('status') }),
]);

export type Order = z.infer<typeof orderSchema>;

export const statusSchema = z.object({
  hosts: z.int(),
  open: z.int(),
  armed: z.int(),
  fallen: z.int(),
  reclaimed: z.int(),
  expired: z.int(),
  fenced: z.int(),
  /** The lowest revision as of which one of them knows all networks. */
  networks: z.number(),
  /** How many hosts the one of them knows that knows fewest. */
  listed: z.number(),
  surveys: z.int(),
  /** Of them, those without the answer of whoever asked. */
  deaf: z.int(),
});

export type HostsStatus = z.infer<typeof statusSchema>;

export const answerSchema = z.object({
  order: z.int(),
  status: statusSchema.optional(),
  error: z.string().optional(),
});
