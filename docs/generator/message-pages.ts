import {
  ATTACHMENT_DIFFERENCES,
  FIREWALL_DIFFERENCES,
  LEDGER_DIFFERENCES,
  NETWORK_DIFFERENCES,
} from '#protocol/differences.ts';
import { DETACHED_REASONS, EVENT_TYPES, REPAIR_ACTIONS } from '#protocol/events.ts';
import { LOCAL_OPS } from '#protocol/local-socket.ts';
import { headersOf } from './asyncapi.ts';
import {
  ATTACHMENT_DIFFERENCE_MEANINGS,
  DETACHED_MEANINGS,
  EVENT_MEANINGS,
  FIREWALL_DIFFERENCE_MEANINGS,
  LEDGER_DIFFERENCE_MEANINGS,
  LOCAL_OP_MEANINGS,
  NETWORK_DIFFERENCE_MEANINGS,
  PLAN_MEANINGS,
  REPAIR_MEANINGS,
} from './codes.ts';
import { page, schemaFile } from './pages.ts';
import { type JsonSchema, schemaNamed, SCHEMAS } from './schemas.ts';
import { code, keyTable, table, typeOf } from './tables.ts';

// The pages of docs/reference about what travels: differences, events, the local socket.

/** Names in the order of their list, with their meanings. */
const meaningTable = <Name extends string>(
  head: string,
  names: readonly Name[],
  meanings: Readonly<Record<Name, string>>,
  written: (name: Name) => string = (name) => name,
): string =>
  table(
    [head, ''],
    names.map((name) => [code(written(name)), meanings[name]]),
  );

export const differencePage = (): string =>
  page('Differences', [
    'Every `what` of a difference: in the answers of `check` and `ledger.check`, and in the event `repaired`',
    '([protocol.md](protocol.md#get-list-check)). What stands in `<…>` is a name of the kernel or of nftables. A newer agent may have more.',
    '',
    '## Of an attachment',
    '',
    "What lies in the workload's namespace is found there for a container with `netns`; of a macvlan or a virtual function it is `device…`.",
    '',
    meaningTable('`what`', ATTACHMENT_DIFFERENCES, ATTACHMENT_DIFFERENCE_MEANINGS),
    '',
    '## Of a network',
    '',
    'What a network has on the host. `id` is the name of the network, and `network` is the action of the plan.',
    '',
    meaningTable('`what`', NETWORK_DIFFERENCES, NETWORK_DIFFERENCE_MEANINGS),
    '',
    '## Of the firewall',
    '',
    'In the event `repaired` with `action` `firewall`. `id` is the host.',
    '',
    meaningTable('`what`', FIREWALL_DIFFERENCES, FIREWALL_DIFFERENCE_MEANINGS),
    '',
    '## Of the ledger with itself',
    '',
    'In the answer of `ledger.check`. `id` is the attachment, or `-`.',
    '',
    meaningTable(
      '`what`',
      LEDGER_DIFFERENCES,
      LEDGER_DIFFERENCE_MEANINGS,
      (name) => `ledger ${name}`,
    ),
    '',
    '## What is done about them',
    '',
    'The `action` in the `plan` of `check`:',
    '',
    table(
      ['`action`', ''],
      Object.entries(PLAN_MEANINGS).map(([name, meaning]) => [code(name), meaning]),
    ),
    '',
    'The `action` of the event `repaired`:',
    '',
    meaningTable('`action`', REPAIR_ACTIONS, REPAIR_MEANINGS),
  ]);

/** Each header once for what it says, with the kinds of messages that carry it. */
export function headerTable(): string {
  const carriers = { request: 'requests', job: 'jobs', answer: 'answers that are errors' } as const;
  const found = (['request', 'job', 'answer'] as const).flatMap((kind) =>
    headersOf(kind).map(([name, meaning]) => ({ name, meaning, carrier: carriers[kind] })),
  );
  const alike = Map.groupBy(found, ({ name, meaning }) => `${name} ${meaning}`);
  return table(
    ['header', 'in', 'meaning'],
    [...alike.values()].flatMap(([first, ...others]) =>
      first === undefined
        ? []
        : [
            [
              code(first.name),
              [first, ...others].map(({ carrier }) => carrier).join(', '),
              first.meaning,
            ],
          ],
    ),
  );
}

export const eventHeaderTable = (): string =>
  table(
    ['header', 'value'],
    headersOf('event').map(([name, meaning]) => [code(name), meaning]),
  );

export const eventTable = (): string =>
  table(
    ['type', 'what has happened'],
    EVENT_TYPES.map((type) => [
      `[${code(type)}](reference/events.md#${type})`,
      EVENT_MEANINGS[type],
    ]),
  );

interface Key {
  readonly key: string;
  readonly property: JsonSchema;
  /** It and whatever it is below are always there. */
  readonly always: boolean;
}

/** Records have a schema of their own: what is below these keys is told there. */
const RECORDS = new Set(['attachment', 'device', 'network']);

/** Every key of a map, and those below it, by path. */
function keysIn(map: JsonSchema, path = '', above = true): Key[] {
  const required = new Set(map.required);
  return Object.entries(map.properties ?? {}).flatMap(([name, property]) => {
    const key = path === '' ? name : `${path}.${name}`;
    const always = above && required.has(name);
    const inner = property.items ?? property;
    const below = RECORDS.has(name) ? [] : keysIn(inner, key, always);
    return [{ key, property, always }, ...below];
  });
}

const keyRows = (keys: readonly Key[]): string =>
  table(
    ['key', 'type', 'always there', 'meaning'],
    keys.map(({ key, property, always }) => [
      code(key),
      typeOf(property),
      always ? 'yes' : 'no',
      property.description ?? '',
    ]),
  );

const ATTACHMENT_KEYS = Object.keys(schemaNamed('attachment').properties ?? {});

/** A body that has every key of an attachment: they are not told again. */
const isAttachment = ({ properties = {} }: JsonSchema): boolean =>
  ATTACHMENT_KEYS.every((key) => key in properties);

function bodyTable(body: JsonSchema): string {
  const told = new Set(isAttachment(body) ? ATTACHMENT_KEYS : []);
  return keyRows(keysIn(body).filter(({ key }) => !told.has(key.replace(/\..*/, ''))));
}

export const eventPage = (): string =>
  page('Events', [
    'The body of every type of event, by its key. How events travel is in [protocol.md](protocol.md#events).',
    'A newer agent may have more keys and more types.',
    '',
    ...EVENT_TYPES.flatMap((type) => {
      const body = schemaNamed(`event-${type}`);
      const alternatives = body.anyOf ?? [body];
      const whole = alternatives.some(isAttachment);
      return [
        `## ${type}`,
        '',
        `${capital(EVENT_MEANINGS[type])}. Schema: ${schemaFile(`event-${type}`)}.`,
        ...(whole ? ['', `The keys of an [attachment](schemas/attachment.json), and:`] : []),
        ...alternatives.flatMap((one, index) => [
          '',
          ...(index > 0 ? ['Or:', ''] : []),
          bodyTable(one),
        ]),
        '',
        ...(type === 'detached'
          ? [meaningTable('`reason`', DETACHED_REASONS, DETACHED_MEANINGS), '']
          : []),
        ...(type === 'repaired'
          ? [
              meaningTable('`action`', REPAIR_ACTIONS, REPAIR_MEANINGS),
              '',
              'What `differences.what` may be is in [differences.md](differences.md).',
              '',
            ]
          : []),
      ];
    }),
  ]).replace(/\n+$/, '\n');

const capital = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);

export const localSocketPage = (): string =>
  page('The local socket', [
    "The packets of an agent's local socket, by `op`. How they travel, and who may send them, is in",
    '[protocol.md](protocol.md#the-local-socket). An error is answered as on the bus: ' +
      `${schemaFile('error-answer')}.`,
    '',
    ...LOCAL_OPS.flatMap((op) => [
      `## ${op}`,
      '',
      LOCAL_OP_MEANINGS[op],
      '',
      `Packet: ${schemaFile(`local-${op}-packet`)}`,
      '',
      keyTable(schemaNamed(`local-${op}-packet`), true),
      '',
      ...answerLines(`local-${op}-answer`),
    ]),
  ]).replace(/\n+$/, '\n');

function answerLines(name: string): string[] {
  const schema = SCHEMAS.get(name);
  if (schema === undefined) {
    return ['It is answered as `operation` is on the bus: [Messages](README.md#messages).', ''];
  }
  return [`Answer: ${schemaFile(name)}`, '', keyRows(keysIn(schema)), ''];
}
