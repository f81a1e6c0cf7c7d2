import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import specs from '@asyncapi/specs';
import { Ajv } from 'ajv';
import formats from 'ajv-formats';
import { describe, expect, test } from 'vitest';
import { EVENT_TYPES, eventHeaders } from '#protocol/events.ts';
import { NETWORK_KEYS } from '#protocol/network.ts';
import {
  HOST_OPERATIONS,
  JOB_OPERATIONS,
  LEDGER_OPERATIONS,
  NETWORK_CHANGES,
  NETWORK_OPERATIONS,
  subjects,
} from '#protocol/subjects.ts';
import { documents, withTables } from '../../docs/generator/documents.ts';
import { SCHEMAS } from '../../docs/generator/schemas.ts';
import packageJson from '../../package.json' with { type: 'json' };
import { attachment, VOLT0 } from '../protocol/samples.ts';

// docs/reference is made of the code. What is committed has to be what the code makes now.

const ROOT = new URL('../..', import.meta.url).pathname;
const read = (name: string): string => readFileSync(join(ROOT, name), 'utf8');
const made = await documents(packageJson.version);

interface Document {
  readonly channels: Readonly<Record<string, { readonly address: string | null }>>;
  readonly components: {
    readonly messages: Readonly<
      Record<string, { readonly headers?: { readonly properties: Record<string, unknown> } }>
    >;
  };
}
const asyncApi = JSON.parse(read('docs/reference/asyncapi.json')) as Document;

describe('what is committed is what the code says: npm run docs', () => {
  test.each([...made.keys()])('%s', (name) => {
    expect(read(name)).toBe(made.get(name));
  });

  test('no page or schema is left of something that the code has no longer', () => {
    const there = readdirSync(join(ROOT, 'docs/reference'), {
      recursive: true,
      withFileTypes: true,
    })
      .filter((entry) => entry.isFile())
      .map(({ parentPath, name }) => join(parentPath, name).slice(ROOT.length));
    expect(there.filter((name) => !made.has(name))).toEqual([]);
  });

  test('a table that somebody has changed by hand is found', () => {
    const page = read('docs/protocol.md');
    expect(withTables(page.replace('| 404 | no |', '| 405 | no |'))).toBe(page);
    expect(() => withTables('<!-- generated: none -->\n\n\n\n<!-- end -->')).toThrow('no table');
  });
});

describe('schemas', () => {
  const ajv = formats.default(new Ajv({ allErrors: true, strictTypes: false }));
  const validator = (name: string) =>
    ajv.compile(JSON.parse(read(`docs/reference/schemas/${name}.json`)) as object);

  test.each([...SCHEMAS.keys()])('%s is a JSON Schema', (name) => {
    expect(
      ajv.validateSchema(JSON.parse(read(`docs/reference/schemas/${name}.json`)) as object),
    ).toBe(true);
    validator(name);
  });

  const web = { id: 'web', workload: 'vm-web', kind: 'vm', network: 'volt0' };
  const outcome = { requestId: 'r-1', durationMs: { kernel: 1.5 } };
  test.each<[name: string, value: object, is: boolean]>([
    ['attach-request', web, true],
    ['attach-request', { ...web, requestId: 'r-1', dryRun: true, tap: { queues: 2 } }, true],
    ['attach-request', { ...web, newer: 1 }, false],
    ['attach-request', { ...web, tap: { queues: 0 } }, false],
    ['attach-request', { ...web, kind: 'pod' }, false],
    ['attach-request', { id: 'web' }, false],
    ['attach-job', { ...web, requestId: 'r-1' }, true],
    ['attach-job', web, false],
    ['attach-job', { ...web, requestId: 'r-1', dryRun: true }, false],
    ['network-put-request', { ...VOLT0, revision: 3 }, true],
    ['network-put-request', { ...VOLT0, subnets: [] }, false],
    ['attach-answer', { attachment, replayed: false, newer: 1 }, true],
    ['attach-answer', { attachment: {}, replayed: false }, false],
    ['error-answer', { error: { code: 'NEWER', message: '', retryable: true } }, true],
    ['event-attached', { ...attachment, ...outcome, newer: 1 }, true],
    ['event-attached', attachment, false],
    [
      'event-detached',
      { id: 'web', host: 'h1', state: 'detached', reason: 'absent', ...outcome },
      true,
    ],
    ['event-network-changed', { network: 'volt0', deleted: true, ...outcome }, true],
    ['local-claim-packet', { op: 'claim', id: 'web', generation: null }, true],
    ['local-claim-packet', { op: 'clean', id: 'web' }, false],
    ['local-request-packet', { op: 'request', operation: 'list', timeoutMs: 0 }, false],
    ['configuration', {}, true],
    ['configuration', { nats: { url: 'nats://h:4222' }, heartbeatSeconds: 2.5 }, true],
    ['configuration', { natz: {} }, false],
    ['configuration', { nats: { streams: { replicas: 6 } } }, false],
  ])('%s: %j is one: %s', (name, value, is) => {
    const validate = validator(name);
    expect(validate(value), JSON.stringify(validate.errors)).toBe(is);
  });

  test('of networks know every key', () => {
    expect(Object.keys(SCHEMAS.get('network')?.properties ?? {})).toEqual(NETWORK_KEYS);
  });
});

describe('asyncapi.json', () => {
  test('is what the AsyncAPI initiative calls AsyncAPI 3.0.0', () => {
    const ajv = formats.default(new Ajv({ allErrors: true, strict: false }));
    const validate = ajv.compile(specs.schemasWithoutId['3.0.0'] as object);
    expect(validate(asyncApi), JSON.stringify(validate.errors?.slice(0, 5))).toBe(true);
    expect(validate({ ...asyncApi, channels: { 'host.attach': { address: 1 } } })).toBe(false);
  });

  test('leads to what is there', () => {
    const broken: string[] = [];
    const walk = (value: unknown): void => {
      if (typeof value !== 'object' || value === null) return;
      for (const [key, one] of Object.entries(value)) {
        if (key === '$ref' && !leads(String(one))) broken.push(String(one));
        walk(one);
      }
    };
    walk(asyncApi);
    expect(broken).toEqual([]);
  });

  test('has every subject, and no other', () => {
    const told = Object.values(asyncApi.channels).flatMap(({ address }) => address ?? []);
    const own = subjects();
    const named = told.map((one) =>
      own.match(one.replace('{host}', 'h').replace('{network}', 'n')),
    );
    expect(named).not.toContain(null);
    expect(new Set(told).size).toBe(told.length);
    const known =
      HOST_OPERATIONS.length +
      JOB_OPERATIONS.length +
      NETWORK_OPERATIONS.length +
      LEDGER_OPERATIONS.length +
      NETWORK_CHANGES.length +
      EVENT_TYPES.length;
    expect(told).toHaveLength(known);
  });

  test('has the headers of events', () => {
    const { headers } = asyncApi.components.messages['event-attached'] ?? {};
    const sent = eventHeaders({
      id: '',
      type: '',
      source: '',
      subject: '',
      time: '',
      traceparent: '',
    });
    expect(new Set(Object.keys(headers?.properties ?? {}))).toEqual(
      new Set([...Object.keys(sent), 'Nats-Msg-Id']),
    );
  });
});

/** Whether something is where a reference of the document leads: in it, or a file beside it. */
function leads(reference: string): boolean {
  if (reference.startsWith('./')) return made.has(join('docs/reference', reference));
  const found = reference
    .slice(2)
    .split('/')
    .reduce<unknown>(
      (value, key) => (value as Record<string, unknown> | undefined)?.[key],
      asyncApi,
    );
  return found !== undefined;
}
