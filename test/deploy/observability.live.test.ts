import { spawn } from 'node:child_process';
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { until } from '../support/agent.ts';
import { addNamespace, ip } from '../support/kernel.ts';
import { freePort } from '../support/servers.ts';
import { startStack, type Stack } from '../support/stack.ts';
import { dyingWithParent, requireTool } from '../support/tools.ts';

// A real Prometheus, with the configuration and rules of deploy/observability/, scrapes a real agent. Each panel of each
// dashboard has to show something of what the agent went through.

interface Panel {
  readonly title: string;
  readonly targets?: readonly { readonly expr: string }[];
}

interface Rules {
  readonly groups: readonly {
    readonly rules: readonly { readonly name: string; readonly health: string }[];
  }[];
}

const FOLDER = new URL('../../deploy/observability/', import.meta.url).pathname;
const folder = mkdtempSync(join(tmpdir(), 'volt-prometheus-'));
let stack: Stack;
let api: string;
let stopPrometheus: () => Promise<void>;

beforeAll(async () => {
  const [listen, port] = [await freePort(), await freePort()];
  addNamespace('box');
  stack = await startStack({
    config: { metrics: { listen: `127.0.0.1:${listen}`, poolSeconds: 1 } },
  });
  cpSync(join(FOLDER, 'alerts.yml'), join(folder, 'alerts.yml'));
  const config = readFileSync(join(FOLDER, 'prometheus.yml'), 'utf8')
    .replaceAll('15s', '1s')
    .replace('127.0.0.1:9464', `127.0.0.1:${listen}`);
  writeFileSync(join(folder, 'prometheus.yml'), config);
  const [program, args] = dyingWithParent([
    requireTool('prometheus'),
    `--config.file=${join(folder, 'prometheus.yml')}`,
    `--storage.tsdb.path=${join(folder, 'data')}`,
    `--web.listen-address=127.0.0.1:${port}`,
  ]);
  const child = spawn(program, args, { stdio: 'ignore' });
  const ended = new Promise((resolve) => {
    child.once('exit', resolve);
  });
  stopPrometheus = async () => {
    child.kill('SIGKILL');
    await ended;
  };
  api = `http://127.0.0.1:${port}/api/v1`;
  await until('Prometheus has scraped the agent', async () => (await query('up == 1')) > 0);
});
afterAll(async () => {
  await stack[Symbol.asyncDispose]();
  await stopPrometheus();
  rmSync(folder, { recursive: true });
});

async function ask<Data>(path: string): Promise<Data> {
  const response = await fetch(`${api}/${path}`);
  const { status, data, error } = (await response.json()) as {
    status: string;
    data: Data;
    error?: string;
  };
  if (status !== 'success') throw new Error(error);
  return data;
}

/** How many samples a question has for an answer, other than "not a number". Throws for one that Prometheus refuses. */
async function query(expr: string): Promise<number> {
  const { result } = await ask<{ result: { value: [number, string] }[] }>(
    `query?query=${encodeURIComponent(expr)}`,
  );
  return result.filter(({ value: [, value] }) => value !== 'NaN').length;
}

/** Every question of every panel, by dashboard and title, with what Grafana would put into it. */
const questions = new Map<string, string>(
  readdirSync(join(FOLDER, 'dashboards')).flatMap((name) => {
    const text = readFileSync(join(FOLDER, 'dashboards', name), 'utf8');
    const { panels } = JSON.parse(text) as { panels: readonly Panel[] };
    return panels.flatMap(({ title, targets = [] }) =>
      targets.map(({ expr }, index) => {
        const asked = expr
          .replaceAll('$__rate_interval', '1m')
          .replaceAll('$host', 'h1')
          .replaceAll('$network', 'volt0')
          .replaceAll('$type', '.*');
        return [`${name}: ${title} (${index + 1})`, asked] as const;
      }),
    );
  }),
);

/** Asks until each of these was answered with something once. */
async function untilAnswered(names: readonly string[]): Promise<void> {
  const left = new Set(names);
  await until(
    'all panels show something',
    async () => {
      for (const name of left) if ((await query(questions.get(name) ?? '')) > 0) left.delete(name);
      return left.size === 0;
    },
    120_000,
  ).catch(() => expect([...left]).toEqual([]));
}

test('each panel shows what the agent went through', async () => {
  const { client, host, redis } = stack;
  const onlyInTrouble = [...questions.keys()].filter((name) =>
    /: (Conditions|Conditions now|Not attached|Oldest change not ended) \(/.test(name),
  );
  expect(onlyInTrouble).toHaveLength(4);
  const vm = { id: 'web', workload: 'vm-web', kind: 'vm', network: 'volt0' } as const;
  const { attachment } = await client.attach(host, vm);
  const box = { id: 'box', workload: 'box', kind: 'container', network: 'volt0' } as const;
  await client.attach(host, { ...box, netns: '/run/netns/box' });
  ip('link', 'del', attachment.device?.name ?? '');
  // What counts from zero shows no rate before it has grown while Prometheus looked.
  let stop = false;
  const life = (async () => {
    for (let n = 0; !stop; n += 1) {
      const id = `vm-${n}`;
      await client.attach(host, { id, workload: id, kind: 'vm', network: 'volt0' });
      await client.update(host, { id, labels: { n: String(n) } });
      await client.detach(host, { id });
      await stack.gone(id);
      const none = { id: 'none', workload: 'none', kind: 'vm', network: 'nowhere' } as const;
      await client.attach(host, none).catch(() => {});
      // As the device of `web`, its record and its lease say.
      if (n % 20 === 19) ip('link', 'set', attachment.device?.name ?? '', 'down');
    }
  })();
  await untilAnswered([...questions.keys()].filter((name) => !onlyInTrouble.includes(name)));
  stop = true;
  await life;

  await redis.kill();
  await client.detach(host, { id: 'web' });
  await untilAnswered(onlyInTrouble);
});

test('each alert can be evaluated', async () => {
  const rules = async (): Promise<Rules['groups'][number]['rules']> =>
    (await ask<Rules>('rules')).groups.flatMap((group) => group.rules);
  await until('all were evaluated', async () => {
    return (await rules()).every(({ health }) => health !== 'unknown');
  });
  const ill = (await rules()).filter(({ health }) => health !== 'ok');
  expect(ill).toEqual([]);
});
