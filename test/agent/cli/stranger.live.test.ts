import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:net';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { encode } from '#protocol/envelope.ts';
import { actsOnTerminals } from '../../support/hostile-text.ts';
import { type Server, startNats } from '../../support/servers.ts';

// Whoever may publish on the subject of events chooses what the terminals of all who watch have to show.

const VOLTNET = fileURLToPath(new URL('../../../deploy/bin/voltnet', import.meta.url));
const HOSTILE = '\x1b]0;mine\x07\x1b[2J\x9b31m\x7f\u202e\u2028\u200b';

let nats: Server;
beforeAll(async () => {
  nats = await startNats();
});
afterAll(() => nats.stop());

/** Publishes by hand: the library would not send such headers. */
function publish(type: string, body: object): void {
  const header = (name: string): string => `${name}: ${HOSTILE.repeat(3)}\r\n`;
  const headers = ['ce-id', 'ce-subject', 'ce-time', 'traceparent'].map(header).join('');
  const head = Buffer.from(`NATS/1.0\r\nce-source: /volt/network/h1\r\n${headers}\r\n`);
  const whole = Buffer.concat([head, encode(body)]);
  const stranger = connect(nats.port, '127.0.0.1');
  const command = `HPUB volt.net.v1.event.h1.volt0.${type} ${head.length} ${whole.length}\r\n`;
  stranger.write('CONNECT {"headers":true,"verbose":false}\r\n');
  stranger.end(Buffer.concat([Buffer.from(command), whole, Buffer.from('\r\nPING\r\n')]));
}

test.each([
  ['detached', { durationMs: { [HOSTILE]: 1 }, reason: HOSTILE, addresses: [HOSTILE] }],
  ['failed', { error: { code: HOSTILE, message: `${HOSTILE}\nvoltnet: all is well` } }],
])("a stranger's event %s is one line of text", async (type, body) => {
  const env = { ...process.env, VOLT_NET_NATS_URL: nats.url };
  const watch = spawn(VOLTNET, ['watch', '--count', '1'], { env });
  let shown = '';
  watch.stdout.on('data', (chunk: Buffer) => (shown += chunk.toString('utf8')));
  await once(watch.stderr, 'data');
  publish(type, body);
  await once(watch, 'close');
  expect(actsOnTerminals(shown)).toEqual([]);
  expect(shown).toContain(`${type}  `);
  expect(shown.match(/\n/g)).toHaveLength(1);
});
