import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { afterHelp } from '#agent/cli/manual.ts';
import { allCommands, createProgram } from '#agent/cli/program.ts';
import { Shell } from '#agent/cli/shell.ts';
import { type RunningAgent, until } from '../support/agent.ts';
import { ip, removeNamespace } from '../support/kernel.ts';
import { startStack, type Stack } from '../support/stack.ts';

// Every example of `voltnet --help`, in the order in which help has them, typed into a shell on a host.

const ROOT = new URL('../../', import.meta.url).pathname;
const folder = mkdtempSync(join(tmpdir(), 'volt-help-'));
const bin = join(folder, 'bin');

const shell = new Shell({
  env: {},
  terminal: { write: () => {}, writeError: () => {}, isTTY: () => false },
});
const program = await createProgram({ shell, version: '0', words: ['help'] });

interface Example {
  readonly of: string;
  readonly line: string;
}

/** The lines that begin with a prompt, with those that go on with them. */
function examplesOf(command: Command): Example[] {
  const lines = afterHelp(command).split('\n');
  return lines.flatMap((first, start) => {
    if (!first.startsWith('  $ ')) return [];
    let end = start;
    while (/[\\|]$/.test(lines[end] ?? '')) end += 1;
    const line = lines
      .slice(start, end + 1)
      .join('\n')
      .slice(4);
    return [{ of: command.name(), line }];
  });
}

/** What leaves nothing of the host that the others need. */
const LAST = new Set(['rename', 'clean']);
const examples = allCommands(program)
  .flatMap(examplesOf)
  .map((example, place) => ({ ...example, place }))
  .toSorted((a, b) => rank(a) - rank(b) || a.place - b.place);

function rank({ of, line }: Example): number {
  return LAST.has(of) && line !== 'voltnet host clean' ? 1 : 0;
}

const WEB = 'voltnet attach --id web --workload vm-web --kind vm --network volt0';

/** What has to be there before an example, beside what the examples before it have left. */
const BEFORE: Readonly<Record<string, string>> = {
  'voltnet network put volt0.json --revision 3': 'sed -i s/254/253/ volt0.json',
  'voltnet network edit volt0': 'voltnet network put volt0.json',
  'voltnet network diff volt0.json': 'voltnet network put volt0.json',
  [WEB]: 'voltnet network put volt0.json',
  'voltnet guest-config web --format': 'mkdir -p guest/etc/systemd/network',
  'voltnet guest-config web': 'mkdir -p seed',
  'zcat traces.jsonl.gz': 'gzip -k traces.jsonl',
  "voltnet attach --file web.json --json | jq -r '.attachment.addresses[0].address'": `echo '{"id":"file","workload":"vm-file","kind":"vm","network":"volt0"}' > web.json`,
  'voltnet get web': WEB,
  'voltnet exec web2':
    'voltnet attach --id web2 --workload vm-web2 --kind vm --network volt0 --queues 2',
  'voltnet watch --type detached --count 1':
    'voltnet attach --id tick --workload vm-tick --kind vm --network volt0',
};

/** Exit codes of those that cannot come to a good end here, and why. Several: either. */
const ENDS: readonly (readonly [begins: string, codes: readonly number[], why: string])[] = [
  ['voltnet setup --replicas 3', [8], 'a server that is alone keeps one replica'],
  ['voltnet network put volt0.json --revision 3', [0, 5], 'if the network is at revision 3'],
  ['voltnet --host h2 ', [3], 'there is no host h2; jq has nothing to read'],
  ['voltnet watch --type detached --count 1', [0], 'ends by itself'],
  ['voltnet watch', [124], 'ends when somebody ends it'],
  ['VOLT_NET_NATS_CREDENTIALS_FILE=', [2], 'there is no such file'],
  ['voltnet ledger install --username admin', [2], 'there is no such file'],
  ['voltnet ledger install --redis rediss:', [6], 'there is no such server'],
  ['voltnet trace web --file /var/lib/otelcol', [2], 'there is no such file'],
  ['voltnet trace web --tempo http://tempo:3200', [6], 'there is no such server'],
  ['voltnet trace web --jaeger https://jaeger.example/ui', [2], 'there is no such file of headers'],
  ['voltnet dashboard --listen 127.0.0.1:9000 --traces', [2], 'there is no such file'],
  ['voltnet dashboard', [124], 'ends when somebody ends it'],
  ['voltnet host drain h7', [3], 'there is no host h7'],
  ['voltnet doctor', [0, 8], 'it says what it finds'],
  ['clean: voltnet host forget h7', [3], 'this was the only host with an agent'],
];

/** A line of a Collector's file. */
const TRACE = `${JSON.stringify({
  resourceSpans: [
    {
      scopeSpans: [
        {
          spans: [
            {
              traceId: '4bf92f3577b34da6a3ce929d0e0e4736',
              spanId: '00f067aa0ba902b7',
              name: 'attach',
              startTimeUnixNano: '1000000000',
              endTimeUnixNano: '1002000000',
              attributes: [{ key: 'volt.attachment.id', value: { stringValue: 'web' } }],
            },
          ],
        },
      ],
    },
  ],
})}\n`;

let stack: Stack;
let agent: RunningAgent;
beforeAll(async () => {
  mkdirSync(bin);
  stack = await startStack({
    networks: [],
    config: { host: 'h1', heartbeatSeconds: 0.5, suspectAfterSeconds: 2 },
  });
  ({ agent } = stack);
  const put = program.commands.find((one) => one.name() === 'network')?.commands[0];
  const [shown = ''] = /^ {2}\{\n[^]*?^ {2}\}/m.exec(afterHelp(put ?? program)) ?? [];
  writeFileSync(join(folder, 'volt0.json'), shown);
  install('voltnet', `exec ${ROOT}deploy/bin/voltnet --config ${agent.configFile} "$@"`);
  // A VMM that looks whether its descriptors are open.
  install(
    'qemu-system-x86_64',
    `for fd in $(echo "$*" | grep -oE 'fds?=[0-9:]+' | sed 's/.*=//; s/:/ /g'); do [ -e /proc/self/fd/$fd ] || exit 9; done
echo "$*" | grep -qE 'fds?=[0-9]' || exit 9`,
  );
  for (const name of ['systemctl', 'ssh', 'vi', 'nano']) install(name, 'exit 0');
  // An address of the host, as of its network for administration.
  ip('address', 'add', '10.0.0.7/32', 'dev', 'lo');
  writeFileSync(join(folder, 'traces.jsonl'), TRACE);
});
afterAll(async () => {
  await stack[Symbol.asyncDispose]();
  for (const name of ['db', 'job']) removeNamespace(name);
  rmSync(folder, { recursive: true });
});

function install(name: string, script: string): void {
  writeFileSync(join(bin, name), `#!/bin/bash\n${script}\n`);
  chmodSync(join(bin, name), 0o755);
}

interface Ended {
  readonly code: number | null;
  readonly said: string;
}

async function type(line: string): Promise<Ended> {
  const endless = /^voltnet (watch|dashboard)/.test(line) && !line.includes('--count');
  const words = [...(endless ? ['timeout', '3'] : []), 'bash', '-o', 'pipefail', '-c', line];
  const child = spawn(words[0] ?? '', words.slice(1), {
    cwd: folder,
    env: { ...process.env, PATH: `${bin}:${process.env['PATH']}` },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let said = '';
  child.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (said += chunk.toString()));
  if (line.includes('--type detached --count 1')) {
    await until('it watches', () => said !== '');
    await type('voltnet detach tick');
  }
  await once(child, 'close');
  return { code: child.exitCode, said };
}

test('every command has examples', () => {
  expect(examples.length).toBeGreaterThan(80);
});

// One after the other: each begins with what those before it have left.
test.each(examples)('$of: $line', async ({ of, line }) => {
  if (line.startsWith('systemctl') && line.includes('stop')) await agent.kill();
  if (line.startsWith('voltnet host rename')) {
    const config = JSON.parse(readFileSync(agent.configFile, 'utf8')) as object;
    writeFileSync(agent.configFile, JSON.stringify({ ...config, host: 'h7b' }));
  }
  const [, before = ''] = Object.entries(BEFORE).find(([begin]) => line.startsWith(begin)) ?? [];
  if (before !== '') expect(await type(before)).toMatchObject({ code: 0 });
  const { code, said } = await type(line);
  const [, codes = [0]] =
    ENDS.find(([begin]) => line.startsWith(begin) || `${of}: ${line}` === begin) ?? [];
  expect(codes, said).toContain(code);
});
