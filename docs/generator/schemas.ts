import { z } from 'zod';
import { configSchema } from '#agent/config.ts';
import * as attachment from '#protocol/attachment.ts';
import { errorSchema, eventBodySchemas } from '#protocol/event-bodies.ts';
import { EVENT_TYPES, type EventType } from '#protocol/events.ts';
import * as ledger from '#protocol/ledger.ts';
import { LOCAL_OPS, localAnswerSchemas, localPacketSchemas } from '#protocol/local-socket.ts';
import * as network from '#protocol/network.ts';
import { type Meanings, MEANINGS } from './meanings.ts';

/** JSON Schema, draft 7, as far as zod writes it. */
export interface JsonSchema {
  $schema?: string;
  $id?: string;
  title?: string;
  description?: string;
  /** Several where null is one of them. */
  type?: string | string[];
  const?: unknown;
  enum?: unknown[];
  default?: unknown;
  pattern?: string;
  format?: string;
  readOnly?: boolean;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  maxItems?: number;
  maxLength?: number;
  anyOf?: JsonSchema[];
  items?: JsonSchema;
  properties?: Record<string, JsonSchema>;
  required?: string[];
  additionalProperties?: JsonSchema | boolean;
  propertyNames?: JsonSchema;
}

/** What a schema is for decides how strictly it reads: requests refuse unknown keys, all others take them. */
type Use = 'request' | 'answer' | 'event' | 'job' | 'record' | 'packet' | 'configuration';

interface Source {
  readonly schema: z.ZodType;
  readonly title: string;
  readonly use: Use;
  /** The part of MEANINGS that has its keys; else that of its own name. */
  readonly meanings?: string;
}

const { attachRequestSchema: attach, detachRequestSchema, updateRequestSchema } = attachment;
const request = (schema: z.ZodType, title: string): Source => ({ schema, title, use: 'request' });
const answer = (schema: z.ZodType, title: string): Source => ({ schema, title, use: 'answer' });

/** A job is a request; JetStream recognises it by its request id. In one a dry run is refused. */
const job = (schema: z.ZodObject, title: string, meanings: string): Source => ({
  schema,
  title,
  use: 'job',
  meanings,
});
const { dryRun: _refused, ...attachJob } = attach.shape;

/** The request keys of `network.put`: a network as an operator writes it, and the revision that it replaces. */
const networkPut = z.strictObject({
  ...network.networkSchema.shape,
  ...attachment.networkPutRequestSchema.shape,
});

const events = Object.fromEntries(
  EVENT_TYPES.map((type): [string, Source] => {
    const schema = eventBodySchemas[type];
    return [`event-${type}`, { schema, title: `Body of the event ${type}`, use: 'event' }];
  }),
);

const packets = Object.fromEntries(
  LOCAL_OPS.map((op): [string, Source] => {
    const title = `Packet ${op} to the local socket`;
    return [`local-${op}-packet`, { schema: localPacketSchemas[op], title, use: 'packet' }];
  }),
);
const localAnswers = Object.fromEntries(
  Object.entries(localAnswerSchemas).map(([op, schema]): [string, Source] => [
    `local-${op}-answer`,
    answer(schema, `Answer of the local socket to ${op}`),
  ]),
);

/** Every schema of docs/reference/schemas by its file's name. */
const SOURCES: Readonly<Record<string, Source>> = {
  'attach-request': request(attach, 'Request of attach'),
  'detach-request': request(detachRequestSchema, 'Request of detach'),
  'update-request': request(updateRequestSchema, 'Request of update'),
  'get-request': request(attachment.getRequestSchema, 'Request of get'),
  'list-request': request(attachment.listRequestSchema, 'Request of list'),
  'check-request': request(attachment.checkRequestSchema, 'Request of check'),
  'cordon-request': request(attachment.cordonRequestSchema, 'Request of cordon'),
  'network-put-request': request(networkPut, 'Request of network.put'),
  'network-get-request': request(attachment.networkGetRequestSchema, 'Request of network.get'),
  'network-list-request': request(attachment.networkListRequestSchema, 'Request of network.list'),
  'network-delete-request': request(
    attachment.networkDeleteRequestSchema,
    'Request of network.delete',
  ),
  'ledger-leases-request': request(ledger.ledgerLeasesRequestSchema, 'Request of ledger.leases'),
  'ledger-hosts-request': request(ledger.ledgerHostsRequestSchema, 'Request of ledger.hosts'),
  'ledger-forget-request': request(ledger.ledgerForgetRequestSchema, 'Request of ledger.forget'),
  'ledger-check-request': request(ledger.ledgerCheckRequestSchema, 'Request of ledger.check'),
  'attach-job': job(z.strictObject(attachJob), 'Job attach', 'attach-job'),
  'detach-job': job(detachRequestSchema, 'Job detach', 'detach-request'),
  'update-job': job(updateRequestSchema, 'Job update', 'update-request'),
  'attach-answer': answer(attachment.attachAnswerSchema, 'Answer of attach'),
  'attach-dry-run-answer': answer(
    attachment.dryRunAnswerSchema,
    'Answer of attach with dryRun true',
  ),
  'detach-answer': answer(attachment.detachAnswerSchema, 'Answer of detach'),
  'update-answer': answer(attachment.updateAnswerSchema, 'Answer of update'),
  'get-answer': answer(attachment.getAnswerSchema, 'Answer of get'),
  'list-answer': answer(attachment.listAnswerSchema, 'Answer of list'),
  'list-all-hosts-answer': answer(
    attachment.fleetListAnswerSchema,
    'Answer of list with allHosts true',
  ),
  'check-answer': answer(attachment.checkAnswerSchema, 'Answer of check'),
  'cordon-answer': answer(attachment.cordonAnswerSchema, 'Answer of cordon'),
  'network-put-answer': answer(network.networkPutAnswerSchema, 'Answer of network.put'),
  'network-get-answer': answer(network.networkGetAnswerSchema, 'Answer of network.get'),
  'network-list-answer': answer(network.networkListAnswerSchema, 'Answer of network.list'),
  'network-delete-answer': answer(network.networkDeleteAnswerSchema, 'Answer of network.delete'),
  'ledger-leases-answer': answer(ledger.ledgerLeasesAnswerSchema, 'Answer of ledger.leases'),
  'ledger-hosts-answer': answer(ledger.ledgerHostsAnswerSchema, 'Answer of ledger.hosts'),
  'ledger-forget-answer': answer(ledger.ledgerForgetAnswerSchema, 'Answer of ledger.forget'),
  'ledger-check-answer': answer(ledger.ledgerCheckAnswerSchema, 'Answer of ledger.check'),
  'error-answer': answer(z.object({ error: errorSchema }), 'Answer that is an error'),
  ...events,
  ...packets,
  ...localAnswers,
  attachment: { schema: attachment.attachmentSchema, title: 'Attachment', use: 'record' },
  network: { schema: network.networkSchema, title: 'Network, with its defaults', use: 'record' },
  configuration: { schema: configSchema, title: 'agent.json', use: 'configuration' },
};

/** Every schema of the reference, by name, each key with its meaning. */
export const SCHEMAS: ReadonlyMap<string, JsonSchema> = new Map(
  Object.entries(SOURCES).map(([name, source]) => [name, schemaOf(name, source)]),
);

export function schemaNamed(name: string): JsonSchema {
  const found = SCHEMAS.get(name);
  if (found === undefined) throw new Error(`there is no schema ${name}`);
  return found;
}

export const eventSchema = (type: EventType): string => `event-${type}`;

function schemaOf(name: string, { schema: source, title, use, meanings }: Source): JsonSchema {
  const made = withoutOwnWords(written(source, name === 'network' ? 'output' : 'input'));
  if (use === 'answer' || use === 'event' || use === 'record') open(made);
  const { $schema, ...rest } = made;
  if (use === 'job') rest.required = [...(rest.required ?? []), 'requestId'];
  const known = MEANINGS[meanings ?? name];
  if (known === undefined) throw new Error(`docs/generator/meanings.ts has no "${name}"`);
  explain(rest, known, name);
  return { ...($schema !== undefined && { $schema }), title, ...rest };
}

function written(source: z.ZodType, io: 'input' | 'output'): JsonSchema {
  const made = z.toJSONSchema(source, {
    target: 'draft-7',
    io,
    unrepresentable: 'any',
    override: ({ zodSchema, jsonSchema }) => {
      if (zodSchema !== network.recorded) return;
      const { $schema: _outer, ...inner } = written(network.networkSchema, 'output');
      Object.assign(jsonSchema, inner);
    },
  });
  const copy: JsonSchema = JSON.parse(JSON.stringify(made));
  return copy;
}

function below({ properties, items, anyOf, additionalProperties }: JsonSchema): JsonSchema[] {
  return [
    ...Object.values(properties ?? {}),
    ...(items === undefined ? [] : [items]),
    ...(anyOf ?? []),
    ...(typeof additionalProperties === 'object' ? [additionalProperties] : []),
  ];
}

/** zod bounds every integer by what JavaScript can count, names formats that only it knows, and tells what its types say. */
function withoutOwnWords(made: JsonSchema): JsonSchema {
  if (made.maximum === Number.MAX_SAFE_INTEGER) delete made.maximum;
  if (made.format === 'starts_with') delete made.format;
  delete made.readOnly;
  if (made.minimum === Number.MIN_SAFE_INTEGER) delete made.minimum;
  for (const one of below(made)) withoutOwnWords(one);
  return made;
}

/** A newer agent may say more than its schema. */
function open(made: JsonSchema): void {
  if (made.additionalProperties === false) delete made.additionalProperties;
  for (const one of below(made)) open(one);
}

/** Gives each key its meaning. A key without one, or a meaning without a key, is a mistake. */
function explain(made: JsonSchema, meanings: Meanings, name: string): void {
  const unused = new Set(Object.keys(meanings));
  const walk = (part: JsonSchema, known: Meanings, path: string): void => {
    for (const [key, property] of Object.entries(part.properties ?? {})) {
      const at = path === '' ? key : `${path}.${key}`;
      const meaning = known[at];
      if (meaning === undefined) throw new Error(`${name}: no meaning of "${at}"`);
      if (known === meanings) unused.delete(at);
      const { text, of } = typeof meaning === 'string' ? { text: meaning, of: undefined } : meaning;
      const described = property.anyOf === undefined ? property : property;
      if (text !== '') described.description = text;
      walk(property, of === undefined ? known : (MEANINGS[of] ?? {}), of === undefined ? at : '');
    }
    for (const one of below({ ...part, properties: {} })) walk(one, known, path);
  };
  walk(made, meanings, '');
  if (unused.size > 0) throw new Error(`${name}: no key has the meaning ${[...unused].join(', ')}`);
}
