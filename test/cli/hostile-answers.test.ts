import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import type { MsgHdrs, NatsConnection } from 'nats';
import { afterAll, describe, expect, test } from 'vitest';
import type { z } from 'zod';
import type { Connected } from '#agent/cli/connect.ts';
import { run } from '#agent/cli/run.ts';
import { Shell } from '#agent/cli/shell.ts';
import { listenSeqpacket } from '#native/unix.ts';
import {
  attachAnswerSchema,
  checkAnswerSchema,
  detachAnswerSchema,
  getAnswerSchema,
  listAnswerSchema,
  rehearsalSchema,
  updateAnswerSchema,
} from '#protocol/attachment.ts';
import { VoltNetworkClient } from '#protocol/client.ts';
import { decode, encodeAnswer } from '#protocol/envelope.ts';
import { errorSchema, eventBodySchemas } from '#protocol/event-bodies.ts';
import { EVENT_TYPES } from '#protocol/events.ts';
import {
  ledgerCheckAnswerSchema,
  ledgerForgetAnswerSchema,
  ledgerHostsAnswerSchema,
  ledgerLeasesAnswerSchema,
} from '#protocol/ledger.ts';
import {
  networkDeleteAnswerSchema,
  networkGetAnswerSchema,
  networkListAnswerSchema,
  networkPutAnswerSchema,
} from '#protocol/network.ts';
import type { IS_ANSWER } from '#protocol/outlines.ts';
import { actsOnTerminals, hostileText, hostileValue } from '../support/hostile-text.ts';

// Every command, against a peer that fills each field of its answers with what a terminal acts upon. The fields are
// those of the protocol's schemas: one that is new there is in here by itself.

const folder = mkdtempSync(join(tmpdir(), 'volt-test-hostile-'));
afterAll(() => {
  rmSync(folder, { recursive: true });
});
const networkFile = join(folder, 'network.json');
writeFileSync(networkFile, '{"network":"lab","subnet":"10.77.0.0/24"}');

const ATTACH = 'attach --id web --workload vm-web --kind vm --network volt0';

/** By operation of the client: what its answer holds, and the commands that show it. */
const ANSWERS: Readonly<
  Record<keyof typeof IS_ANSWER, { schema: z.ZodType; commands: readonly string[] }>
> = {
  attach: { schema: attachAnswerSchema, commands: [ATTACH] },
  rehearsal: { schema: rehearsalSchema, commands: [`${ATTACH} --dry-run`] },
  update: { schema: updateAnswerSchema, commands: ['update web --no-ports'] },
  detach: { schema: detachAnswerSchema, commands: ['detach web'] },
  get: { schema: getAnswerSchema, commands: ['get web'] },
  list: { schema: listAnswerSchema, commands: ['list', 'list --limit 1'] },
  check: { schema: checkAnswerSchema, commands: ['check'] },
  networkPut: { schema: networkPutAnswerSchema, commands: [`network put ${networkFile}`] },
  networkGet: {
    schema: networkGetAnswerSchema,
    commands: ['network get volt0', 'network show volt0'],
  },
  networkList: { schema: networkListAnswerSchema, commands: ['network list'] },
  networkDelete: { schema: networkDeleteAnswerSchema, commands: ['network delete volt0'] },
  ledgerLeases: { schema: ledgerLeasesAnswerSchema, commands: ['lease list'] },
  ledgerHosts: { schema: ledgerHostsAnswerSchema, commands: ['host list'] },
  ledgerForget: { schema: ledgerForgetAnswerSchema, commands: ['host forget h1'] },
  ledgerCheck: { schema: ledgerCheckAnswerSchema, commands: ['ledger check'] },
};

/** For people, for people at a terminal, and for programs. */
const MODES = [
  { more: '', isTTY: false },
  { more: ' --json', isTTY: false },
  { more: '', isTTY: true },
] as const;
const RUNS = { numRuns: 60 };

interface Printed {
  readonly out: string;
  readonly error: string;
  readonly exitCode: number;
}

/** Runs a command in this process, over a connection of ours. */
async function printed(
  command: string,
  isTTY: boolean,
  connection: Pick<NatsConnection, 'request' | 'subscribe'>,
): Promise<Printed> {
  let out = '';
  let error = '';
  const terminal = {
    write: (text: string) => (out += text),
    writeError: (text: string) => (error += text),
    isTTY: () => isTTY,
  };
  class OurShell extends Shell {
    override withClient<T>(work: (connected: Connected) => Promise<T>): Promise<T> {
      const headers = () => new Map() as unknown as MsgHdrs;
      const client = new VoltNetworkClient({ connection: connection as NatsConnection, headers });
      const settings = this.settings();
      const jetStream = () => Promise.reject(new Error('no JetStream'));
      return work({ client, settings, flush: () => Promise.resolve(), jetStream });
    }
  }
  const shell = new OurShell({ env: { VOLT_NET_RUNTIME_DIR: folder }, terminal });
  const exitCode = await run(shell, command.split(' '));
  return { out, error, exitCode };
}

/** Answers every request with these, the second page of a list without a cursor. */
const answering = (answer: unknown) =>
  ({
    request: (_subject: string, payload: Uint8Array) => {
      const paged = Object.hasOwn(decode(payload) as object, 'cursor');
      const page = paged ? { ...(answer as object), cursor: undefined } : answer;
      return Promise.resolve({ data: encodeAnswer(page) });
    },
  }) as unknown as NatsConnection;

/** One message on the subject of events, with this text in each header but the source, then nothing. */
const publishing = (subject: string, body: unknown, text: string) =>
  ({
    subscribe: () =>
      Object.assign(
        (async function* messages() {
          yield await Promise.resolve({
            subject,
            data: encodeAnswer(body),
            headers: { get: (name: string) => (name === 'ce-source' ? '/volt/network/h1' : text) },
          });
        })(),
        { unsubscribe: () => {}, getSubject: () => subject },
      ),
  }) as unknown as NatsConnection;

/** Without colours of ours; that nobody else's come through is seen where there are none. */
const colourless = (text: string): string =>
  [0, 1, 2, 31, 32].reduce((rest, code) => rest.replaceAll(`\x1b[${code}m`, ''), text);

function expectHarmless({ out, error }: Printed, isTTY: boolean): void {
  expect(actsOnTerminals(isTTY ? colourless(out) : out)).toEqual([]);
  expect(actsOnTerminals(error)).toEqual([]);
}

describe('answers', () => {
  const cases = Object.entries(ANSWERS).flatMap(([operation, { schema, commands }]) =>
    commands.map((command) => ({ operation, schema, command })),
  );

  test.each(cases)('$command', async ({ schema, command }) => {
    let shown = 0;
    await fc.assert(
      fc.asyncProperty(
        hostileValue(schema),
        fc.constantFrom(...MODES),
        async (answer, { more, isTTY }) => {
          const result = await printed(command + more, isTTY, answering(answer));
          expectHarmless(result, isTTY);
          if (result.out.length > 0) shown += 1;
        },
      ),
      RUNS,
    );
    // What a view cannot make sense of is an error; a test of errors alone would be none.
    expect(shown).toBeGreaterThan(RUNS.numRuns / 4);
  });
});

describe('events', () => {
  test.each([...EVENT_TYPES, 'of-a-newer-agent'])('%s', async (type) => {
    const schema = type in eventBodySchemas ? eventBodySchemas[type as 'failed'] : errorSchema;
    await fc.assert(
      fc.asyncProperty(
        hostileValue(schema),
        hostileText(),
        fc.constantFrom(...MODES),
        async (body, text, { more, isTTY }) => {
          const connection = publishing(`volt.net.v1.event.h1.volt0.${type}`, body, text);
          const result = await printed(`watch --count 1${more}`, isTTY, connection);
          expect(result).toMatchObject({ exitCode: 0, out: expect.stringContaining(type) });
          expectHarmless(result, isTTY);
          if (more === '') expect(result.out.trimEnd().split('\n')).toHaveLength(1);
        },
      ),
      RUNS,
    );
  });
});

const hostileError = hostileText().chain((code) =>
  hostileValue(errorSchema).map((error) => ({ error: { ...(error as object), code } })),
);

describe('errors', () => {
  test.each(['get web', 'ledger check', 'watch --type x'])('%s', async (command) => {
    await fc.assert(
      fc.asyncProperty(hostileError, fc.constantFrom(...MODES), async (answer, { more, isTTY }) => {
        const result = await printed(command + more, isTTY, answering(answer));
        expect(result.exitCode).not.toBe(0);
        expectHarmless(result, isTTY);
        // Nobody's message makes a line that looks like one of ours.
        const lines = result.error.trimEnd().split('\n');
        if (more === '')
          expect(lines.filter((line) => line.startsWith('voltnet:'))).toHaveLength(1);
      }),
      RUNS,
    );
  });
});

describe('the local socket', () => {
  let answer: unknown;
  const server = listenSeqpacket({
    path: join(folder, 'agent.sock'),
    mode: 0o600,
    onConnection: (connection) =>
      connection.onPacket(() => connection.send(Buffer.from(JSON.stringify(answer)))),
  });
  afterAll(() => server.close());

  const reason = hostileText();
  const health = fc
    .tuple(
      fc.record({
        nats: reason,
        redis: fc.record({ state: reason, reason }),
        session: fc.record({ open: fc.boolean(), awaiting: fc.array(reason) }),
      }),
      fc.dictionary(hostileText(), fc.oneof(reason, fc.dictionary(hostileText(), reason))),
    )
    .map(([known, others]) => ({ health: { ...others, ...known } }));

  test.each([
    ['status', health],
    ['status', hostileError],
    ['exec web -- true', hostileError],
  ])('%s', async (command, answers) => {
    await fc.assert(
      fc.asyncProperty(
        answers,
        fc.constantFrom('--timeout 5s ', '--timeout 5s --json '),
        async (given, flags) => {
          answer = given;
          expectHarmless(await printed(flags + command, false, answering(null)), false);
        },
      ),
      RUNS,
    );
  });
});

test('words of the command line itself', async () => {
  await fc.assert(
    fc.asyncProperty(
      hostileText().map((text) => text.replaceAll(' ', '')),
      fc.constantFrom('', 'get ', 'get web --', 'list --state ', 'network put '),
      async (text, before) => {
        expectHarmless(await printed(before + text, false, answering({})), false);
      },
    ),
    RUNS,
  );
});
