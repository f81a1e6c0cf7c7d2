import { ERRORS } from '#protocol/errors.ts';
import { EVENT_TYPES } from '#protocol/events.ts';
import { MAX_ANSWER_BYTES, MAX_PAYLOAD_BYTES } from '#protocol/envelope.ts';
import { HOST_PATTERN, NETWORK_PATTERN } from '#protocol/names.ts';
import {
  DEFAULT_PREFIX,
  EVENT_STREAM,
  HOST_OPERATIONS,
  JOB_OPERATIONS,
  JOB_STREAM,
  LEDGER_OPERATIONS,
  NETWORK_CHANGES,
  NETWORK_OPERATIONS,
  subjects,
} from '#protocol/subjects.ts';
import { schemaNamed } from './schemas.ts';

type Json = Readonly<Record<string, unknown>>;

const SCHEMA_FORMAT = 'application/schema+json;version=draft-07';
const CONTENT_TYPE = 'application/msgpack';

const text = (description: string): Json => ({ type: 'string', description });

const TRACE = {
  traceparent: text("W3C trace context of the caller: the agent's spans continue it"),
  tracestate: text('with `traceparent`'),
};

/** In headers that are maps of texts, on the way of NATS. */
const HEADERS = {
  request: {
    ...TRACE,
    'volt-timeout-ms': {
      ...text(
        'how long the caller waits, from the arrival on, in milliseconds; default 10000, at most 120000',
      ),
      pattern: '^[0-9]+$',
    },
  },
  answer: {
    'Nats-Service-Error': text('of an error: its code'),
    'Nats-Service-Error-Code': text('of an error: its number'),
  },
  job: {
    ...TRACE,
    'Nats-Msg-Id': text('`<host>.<operation>.<requestId>`: JetStream stores one of each'),
  },
  event: {
    'ce-specversion': { type: 'string', const: '1.0' },
    'ce-id': text('id of the event'),
    'ce-type': text('`volt.net.` and the type'),
    'ce-source': text(
      '`/volt/network/` and the host. Take no event whose source is another than the host in its subject',
    ),
    'ce-subject': text(
      'the attachment, network or host that it is about; `-` where it has no name. Other characters than printable ASCII are percent-encoded',
    ),
    'ce-time': { ...text('when it happened'), format: 'date-time' },
    'ce-datacontenttype': { type: 'string', const: CONTENT_TYPE },
    traceparent: text('trace of the request that caused it'),
    'Nats-Msg-Id': text('the same as `ce-id`'),
  },
} as const satisfies Readonly<Record<string, Readonly<Record<string, Json>>>>;

/** The headers of one kind of message, each with what it says: its one value, or words. */
export const headersOf = (kind: keyof typeof HEADERS): [name: string, meaning: string][] =>
  Object.entries<Json>(HEADERS[kind]).map(([name, { const: value, description }]) => [
    name,
    typeof value === 'string' ? `\`${value}\`` : String(description),
  ]);

const REQUIRED: Readonly<Partial<Record<keyof typeof HEADERS, readonly string[]>>> = {
  job: ['Nats-Msg-Id'],
  event: [
    'ce-specversion',
    'ce-id',
    'ce-type',
    'ce-source',
    'ce-subject',
    'ce-time',
    'ce-datacontenttype',
  ],
};

const PARAMETERS = {
  host: { description: `host id: \`${HOST_PATTERN.source}\`` },
  network: {
    description: `name of a network: \`${NETWORK_PATTERN.source}\`; \`-\` where none applies`,
  },
} as const;

/** A subject with parameters in braces. */
const address = (subject: string): string => subject.replaceAll(/\b(HOST|network0)\b/g, braced);
const braced = (token: string): string => (token === 'HOST' ? '{host}' : '{network}');

const own = subjects();
const reference = (...path: readonly string[]): Json => ({ $ref: `#/${path.join('/')}` });

interface Asked {
  readonly name: string;
  readonly subject: string;
  readonly request: string;
  readonly answers: readonly string[];
  readonly by: string;
}

const OTHER_ANSWERS: Readonly<Record<string, readonly string[]>> = {
  attach: ['attach-dry-run-answer'],
  list: ['list-all-hosts-answer'],
};

const asked = (name: string, subject: string, stem: string, by: string): Asked => ({
  name,
  subject,
  request: `${stem}-request`,
  answers: [`${stem}-answer`, ...(OTHER_ANSWERS[stem] ?? []), 'error-answer'],
  by,
});

const ASKED: readonly Asked[] = [
  ...HOST_OPERATIONS.map((one) =>
    asked(`host.${one}`, own.host('HOST', one), one, 'the agent of that host'),
  ),
  ...NETWORK_OPERATIONS.map((one) =>
    asked(`network.${one}`, own.network(one), `network-${one}`, 'any one agent'),
  ),
  ...LEDGER_OPERATIONS.map((one) =>
    asked(`ledger.${one}`, own.ledger(one), `ledger-${one}`, 'any one agent'),
  ),
];

/** Each subject, with the names of the schemas of what is sent and answered there. */
export const exchanges = (): { subject: string; sent: string; answered: readonly string[] }[] => [
  ...ASKED.map(({ subject, request, answers }) => ({
    subject: shown(subject),
    sent: request,
    answered: answers,
  })),
  ...JOB_OPERATIONS.map((one) => ({
    subject: shown(own.job('HOST', one)),
    sent: `${one}-job`,
    answered: [],
  })),
  ...EVENT_TYPES.map((one) => ({
    subject: shown(own.event('HOST', 'network0', one)),
    sent: `event-${one}`,
    answered: [],
  })),
];

/** A subject as pages write it. */
const shown = (subject: string): string =>
  address(subject).replaceAll('{', '<').replaceAll('}', '>');

/** The protocol as an AsyncAPI document; schemas are files beside it. From the side of an orchestrator. */
export function asyncApi(): Json {
  const channels: Record<string, Json> = {};
  const operations: Record<string, Json> = {};
  const messages: Record<string, Json> = {};

  const message = (name: string, headers: keyof typeof HEADERS): Json => {
    messages[name] = {
      name,
      title: schemaNamed(name).title,
      contentType: CONTENT_TYPE,
      headers: {
        type: 'object',
        properties: HEADERS[headers],
        ...(REQUIRED[headers] !== undefined && { required: REQUIRED[headers] }),
      },
      payload: { schemaFormat: SCHEMA_FORMAT, schema: { $ref: `./schemas/${name}.json` } },
    };
    return reference('components', 'messages', name);
  };
  const channel = (
    name: string,
    subject: string,
    of: Readonly<Record<string, Json>>,
    more = {},
  ) => {
    const place = address(subject);
    const parameters = Object.entries(PARAMETERS).filter(([one]) => place.includes(`{${one}}`));
    channels[name] = {
      address: place,
      messages: of,
      ...(parameters.length > 0 && { parameters: Object.fromEntries(parameters) }),
      ...more,
    };
  };

  for (const { name, subject, request, answers, by } of ASKED) {
    const reply = `${name}.reply`;
    channel(name, subject, { [request]: message(request, 'request') });
    channels[reply] = {
      address: null,
      description: 'the reply subject of the request',
      messages: Object.fromEntries(answers.map((one) => [one, message(one, 'answer')])),
    };
    operations[name] = {
      action: 'send',
      channel: reference('channels', name),
      summary: `asks ${by}`,
      messages: [reference('channels', name, 'messages', request)],
      reply: {
        channel: reference('channels', reply),
        messages: answers.map((one) => reference('channels', reply, 'messages', one)),
      },
    };
  }
  for (const one of JOB_OPERATIONS) {
    const [name, of] = [`job.${one}`, `${one}-job`];
    channel(
      name,
      own.job('HOST', one),
      { [of]: message(of, 'job') },
      {
        description: `stream ${JOB_STREAM}; the outcome is an event with the job's \`requestId\``,
      },
    );
    operations[name] = {
      action: 'send',
      channel: reference('channels', name),
      summary: 'is done by the agent of that host, now or when it is back',
      messages: [reference('channels', name, 'messages', of)],
    };
  }
  for (const type of EVENT_TYPES) {
    const [name, of] = [`event.${type}`, `event-${type}`];
    channel(
      name,
      own.event('HOST', 'network0', type),
      { [of]: message(of, 'event') },
      {
        description: `stream ${EVENT_STREAM}`,
      },
    );
    operations[name] = {
      action: 'receive',
      channel: reference('channels', name),
      messages: [reference('channels', name, 'messages', of)],
    };
  }
  for (const change of NETWORK_CHANGES) {
    const name = `changed.${change}`;
    messages[name] = { name, title: 'Notice of a change', summary: 'has no content' };
    channel(name, own.changed('network0', change), {
      [name]: reference('components', 'messages', name),
    });
    operations[name] = {
      action: 'receive',
      channel: reference('channels', name),
      summary: 'a hint, which may come twice, late or not at all',
      messages: [reference('channels', name, 'messages', name)],
    };
  }
  return {
    asyncapi: '3.0.0',
    info: {
      title: 'Volt Unified Networking',
      version: DEFAULT_PREFIX.split('.').at(-1)?.replace('v', '') ?? '',
      description:
        `From the side of an orchestrator. Subjects begin with \`${DEFAULT_PREFIX}\` unless the fleet is configured otherwise. ` +
        `A payload is one MessagePack map: requests, jobs and events of at most ${MAX_PAYLOAD_BYTES} bytes, answers of at most ${MAX_ANSWER_BYTES}. ` +
        `Codes of errors: ${Object.keys(ERRORS).join(', ')}.`,
      license: { name: 'Apache-2.0' },
    },
    defaultContentType: CONTENT_TYPE,
    channels,
    operations,
    components: { messages },
  };
}
