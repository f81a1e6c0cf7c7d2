import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { connect, headers, type NatsConnection } from 'nats';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { z } from 'zod';
import type { Connected } from '#agent/cli/connect.ts';
import { run } from '#agent/cli/run.ts';
import { Shell } from '#agent/cli/shell.ts';
import { listenSeqpacket } from '#native/seqpacket.ts';
import {
  attachAnswerSchema,
  checkAnswerSchema,
  cordonAnswerSchema,
  detachAnswerSchema,
  fleetListAnswerSchema,
  getAnswerSchema,
  listAnswerSchema,
  dryRunAnswerSchema,
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
import { actsOnTerminals, hostileText, hostileValue } from '../../support/hostile-text.ts';
import { type Server, startNats } from '../../support/servers.ts';

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
  dryRun: { schema: dryRunAnswerSchema, commands: [`${ATTACH} --dry-run`] },
  update: { schema: updateAnswerSchema, commands: ['update web --no-ports'] },
  detach: { schema: detachAnswerSchema, commands: ['detach web'] },
  get: { schema: getAnswerSchema, commands: ['get web'] },
  list: { schema: listAnswerSchema, commands: ['list', 'list --limit 1'] },
  fleetList: { schema: fleetListAnswerSchema, commands: ['list --all-hosts'] },
  check: { schema: checkAnswerSchema, commands: ['check'] },
  cordon: { schema: cordonAnswerSchema, commands: ['host cordon h1'] },
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

let nats: Server;
/** The command line's, and that of whoever answers and publishes in the place of agents. */
let ours: NatsConnection;
let peer: NatsConnection;
/** What the peer says, on the bus or over the socket. */
let answer: unknown;

beforeAll(async () => {
  nats = await startNats();
  const servers = nats.url;
  [ours, peer] = await Promise.all([connect({ servers }), connect({ servers })]);
  // Whatever is asked gets the same; the second page of a list is without a cursor, and so the last.
  peer.subscribe('volt.net.v1.*.>', {
    callback: (_, message) => {
      if (message.reply === undefined || message.reply === '') return;
      const paged = Object.hasOwn(decode(message.data) as object, 'cursor');
      message.respond(encodeAnswer(paged ? { ...(answer as object), cursor: undefined } : answer));
    },
  });
  await peer.flush();
});
afterAll(async () => {
  await Promise.all([ours.close(), peer.close()]);
  await nats.stop();
});

/** Runs a command in this process; `whenListening` once what it watches would be seen. */
async function printed(
  command: string,
  isTTY: boolean,
  whenListening?: () => void,
): Promise<Printed> {
  let out = '';
  let error = '';
  const terminal = {
    write: (text: string) => (out += text),
    writeError: (text: string) => (error += text),
    isTTY: () => isTTY,
  };
  // A watch ends with its connection; to connect for every request would take most of the time.
  const own = whenListening === undefined ? undefined : await connect({ servers: nats.url });
  const connection = own ?? ours;
  class OurShell extends Shell {
    override withClient<T>(work: (connected: Connected) => Promise<T>): Promise<T> {
      return work({
        client: new VoltNetworkClient({ connection, headers }),
        settings: this.settings(),
        flush: () => connection.flush().then(whenListening),
        isUp: () => true,
        jetStream: () => Promise.reject(new Error('no JetStream')),
      });
    }
  }
  const shell = new OurShell({ env: { VOLT_NET_RUNTIME_DIR: folder }, terminal });
  const exitCode = await run(shell, command.split(' '));
  await own?.close();
  return { out, error, exitCode };
}

/** Publishes an event of the host h1 with this text in each header but the source; in a header no line ends. */
function publish(type: string, body: unknown, text: string): void {
  const made = headers();
  const names = ['ce-id', 'ce-type', 'ce-subject', 'ce-time', 'traceparent', 'tracestate'];
  for (const name of names) made.set(name, text.replace(/[\r\n]/g, ' '));
  made.set('ce-source', '/volt/network/h1');
  peer.publish(`volt.net.v1.event.h1.volt0.${type}`, encodeAnswer(body), { headers: made });
}

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
        async (given, { more, isTTY }) => {
          answer = given;
          const result = await printed(command + more, isTTY);
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
          const tell = (): void => publish(type, body, text);
          const result = await printed(`watch --count 1${more}`, isTTY, tell);
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
      fc.asyncProperty(hostileError, fc.constantFrom(...MODES), async (given, { more, isTTY }) => {
        answer = given;
        const result = await printed(command + more, isTTY);
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
          expectHarmless(await printed(flags + command, false), false);
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
        expectHarmless(await printed(before + text, false), false);
      },
    ),
    RUNS,
  );
});
