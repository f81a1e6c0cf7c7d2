import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { Ajv, type ValidateFunction } from 'ajv';
import formats from 'ajv-formats';
import type { Msg } from 'nats';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { decodeAnswer } from '#protocol/envelope.ts';
import { type Subject, subjects } from '#protocol/subjects.ts';
import { until } from '../support/agent.ts';
import { addNamespace, deviceNames, removeNamespace } from '../support/kernel.ts';
import { startStack, type Stack } from '../support/stack.ts';
import { dyingWithParent, requireTool } from '../support/tools.ts';

// The orchestrators of docs/examples against an agent, and every message that goes over the bus meanwhile against the
// schemas of docs/reference.

const ROOT = new URL('../../', import.meta.url).pathname;
const folder = mkdtempSync(join(tmpdir(), 'volt-examples-'));
const EXAMPLES = ['typescript', 'python', 'go'] as const;
type Example = (typeof EXAMPLES)[number];

let stack: Stack;
/** Of each subject or header, what was sent and does not fit. */
const misfits: string[] = [];
const seen = new Set<string>();

beforeAll(async () => {
  const go = { GO111MODULE: 'off', GOPATH: '/usr/share/gocode', GOCACHE: join(folder, 'cache') };
  execFileSync(requireTool('go'), ['build', '-o', join(folder, 'go'), 'orchestrate.go'], {
    cwd: join(ROOT, 'docs/examples/go'),
    env: { ...process.env, ...go },
  });
  stack = await startStack({ networks: [], config: { host: 'h1' } });
  stack.connection.subscribe('volt.net.v1.>', { callback: (_error, message) => look(message) });
});
afterAll(async () => {
  await stack[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

const COMMANDS: Readonly<Record<Example, readonly [string, ...string[]]>> = {
  typescript: [process.execPath, join(ROOT, 'docs/examples/typescript/orchestrate.ts')],
  // Debian's interpreter: it is the one that sees Debian's msgpack.
  python: ['/usr/bin/python3', join(ROOT, 'docs/examples/python/orchestrate.py')],
  go: [join(folder, 'go')],
};

/**
 * Looks at answers, too, while something runs. Not for longer: whoever hears all inboxes keeps the server from noticing that
 * nobody waits at one any more.
 */
async function withAnswers<Result>(run: () => Promise<Result>): Promise<Result> {
  const answers = stack.connection.subscribe('_INBOX.>', {
    callback: (_error, message) => look(message),
  });
  await stack.connection.flush();
  const result = await run();
  await answers.drain();
  return result;
}

/** Runs a program to its end; `heard` is called with each line. */
async function orchestrate(
  example: Example,
  heard: (line: string) => void = () => {},
): Promise<string[]> {
  const [command, args] = dyingWithParent([
    ...COMMANDS[example],
    stack.nats.url,
    stack.host,
    `/run/netns/${example}`,
  ]);
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const lines: string[] = [];
  for await (const line of createInterface(child.stdout)) {
    lines.push(line);
    heard(line);
  }
  const [code] = child.exitCode === null ? await once(child, 'exit') : [child.exitCode];
  expect(code, lines.join('\n')).toBe(0);
  return lines;
}

describe.each(EXAMPLES)('%s', (example) => {
  beforeAll(() => addNamespace(example));
  afterAll(() => removeNamespace(example));

  const eventsIn = (lines: readonly string[]): string[][] =>
    lines.filter((line) => line.startsWith('event ')).map((line) => line.split(' '));
  let last = 0;

  test('puts, attaches, has a job done, detaches, and hears of all of it', async () => {
    const lines = await withAnswers(() => orchestrate(example));
    expect(lines).toEqual(
      expect.arrayContaining([
        expect.stringMatching(/^network volt0 revision \d+$/),
        expect.stringMatching(/^attached web tap-web 10\.42\.0\.\d+\/24$/),
        expect.stringMatching(/^attached box veth-box-h 10\.42\.0\.\d+\/24$/),
        'job updated front',
        'detached web requested',
        'detached box requested',
      ]),
    );
    const events = eventsIn(lines).map(([, , type, subject]) => `${type} ${subject}`);
    // Of one attachment in order.
    expect(events.filter((one) => one.endsWith(' web'))).toEqual([
      'attached web',
      'updated web',
      'detached web',
    ]);
    expect(events.filter((one) => one.endsWith(' box'))).toEqual(['attached box', 'detached box']);
    expect(deviceNames().filter((name) => /web|box/.test(name))).toEqual([]);
    last = Number(eventsIn(lines).at(-1)?.[1]);
  });

  test('tries again while Redis is away, and hears first what happened while it was away itself', async () => {
    const away = { id: 'away', workload: 'vm-away', kind: 'vm', network: 'volt0' } as const;
    await stack.client.attach(stack.host, away);
    await stack.client.detach(stack.host, { id: 'away' });
    await stack.gone('away');
    await stack.redis.kill();
    let restarted: Promise<void> | undefined;
    const lines = await orchestrate(example, (line) => {
      if (line.startsWith('retry ')) restarted ??= stack.redis.restart();
    });
    await restarted;
    expect(lines).toContain('retry STORE_UNAVAILABLE');
    expect(lines).toContain('job updated front');
    const events = eventsIn(lines);
    expect(events.slice(0, 2).map(([, , ...rest]) => rest)).toEqual([
      ['attached', 'away'],
      ['detached', 'away'],
    ]);
    const sequences = events.map(([, sequence]) => Number(sequence));
    expect(sequences[0]).toBe(last + 1);
    expect(sequences).toEqual(sequences.toSorted((a, b) => a - b));
    expect(new Set(sequences).size).toBe(sequences.length);
  });
});

test('every message of these programs, and of every operation, is what its schema says', async () => {
  const { client, host } = stack;
  const web = { id: 'web', workload: 'vm-web', kind: 'vm', network: 'volt0' } as const;
  await withAnswers(async () => {
    await client.attach(host, web);
    await client.attach(host, { ...web, mtu: 1400 }).catch(() => {});
    await client.dryRun(host, { ...web, id: 'dry', workload: 'vm-dry' });
    await client.get(host, { id: 'web' });
    await client.list(host, { network: 'volt0' });
    await until('the agent has read the log of the network', async () => {
      const { attachments } = await client.listFleet(host, { network: 'volt0' });
      return attachments.length > 0;
    });
    await client.check(host);
    await client.update(host, { id: 'web', bandwidth: { ingressBitsPerSecond: 1e6 } });
    await client.cordon(host, { cordoned: true, reason: 'new kernel' });
    await client.cordon(host, { cordoned: false });
    await client.getNetwork('volt0');
    await client.listNetworks();
    await client.ledgerLeases();
    await client.ledgerHosts();
    await client.checkLedger();
    await client.forgetHost('nobody');
    await client.putNetwork({ network: 'gone', subnet: '10.43.0.0/24' });
    await client.deleteNetwork('gone');
    await client.submitDetach(host, { id: 'never' });
    await client.detach(host, { id: 'web' });
    await stack.gone('web');
  });
  await until('the event of the job', () => seen.has('detach-job') && seen.has('event-detached'));
  expect(misfits).toEqual([]);
  const never = ['event-failed', 'event-repaired', 'event-suspect', 'event-host-up'];
  const elsewhere = [
    ...never,
    'event-host-down',
    'attach-job',
    'attachment',
    'network',
    'configuration',
  ];
  // Packets of the local socket are held against theirs in agent/cli/local.live.
  const onTheBus = readdirSync(join(ROOT, 'docs/reference/schemas'))
    .map((name) => name.replace('.json', ''))
    .filter((name) => !name.startsWith('local-'));
  expect([...seen, ...elsewhere].toSorted()).toEqual(expect.arrayContaining(onTheBus));
});

const ajv = formats.default(new Ajv({ allErrors: true, strictTypes: false }));
const validators = new Map<string, ValidateFunction>();
/** Of a reply subject, what was asked. */
const asked = new Map<string, string>();
const own = subjects();

function look({ subject, reply = '', data }: Msg): void {
  const matched = own.match(subject);
  const request = asked.get(subject);
  if (matched !== null && matched.kind !== 'changed') {
    const name = sentOn(matched);
    if (['host', 'network', 'ledger'].includes(matched.kind)) asked.set(reply, name);
    hold([name], data);
  } else if (request !== undefined) {
    const name = request.replace('-request', '');
    const more = { attach: ['attach-dry-run-answer'], list: ['list-all-hosts-answer'] };
    const others = name in more ? more[name as keyof typeof more] : [];
    hold([`${name}-answer`, ...others, 'error-answer'], data);
  }
}

function sentOn(subject: Exclude<Subject, { kind: 'changed' }>): string {
  if (subject.kind === 'event') return `event-${subject.type}`;
  if (subject.kind === 'job') return `${subject.operation}-job`;
  const scope = subject.kind === 'host' ? '' : `${subject.kind}-`;
  return `${scope}${subject.operation}-request`;
}

function hold(names: readonly string[], payload: Uint8Array): void {
  const value = decodeAnswer(payload);
  const fits = names.find((name) => validator(name)(value));
  if (fits !== undefined) seen.add(fits);
  else misfits.push(`${names[0]}: ${ajv.errorsText(validator(names[0] ?? '').errors)}`);
}

function validator(name: string): ValidateFunction {
  const known = validators.get(name);
  if (known !== undefined) return known;
  const text = readFileSync(join(ROOT, `docs/reference/schemas/${name}.json`), 'utf8');
  const made = ajv.compile(JSON.parse(text) as object);
  validators.set(name, made);
  return made;
}
