import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import { until } from '#test/support/agent.ts';
import { type Stack, startStack } from '#test/support/stack.ts';

// Whatever a step throws on the way of a request, a job or an event, that way ends: the request is answered, the job
// comes to its end, the event is published, and nobody else notices. Left out are agent/bus/admission.ts, whose lanes
// count who is in them, in functions that do nothing else, so that one that did not count would leave its lane a place
// short, and agent/schedule/stretches.ts, which in the same way does nothing but begin what waits.

const FILES = [
  ...['bus/inbound', 'bus/bus', 'bus/service', 'bus/error-answer', 'bus/jobs', 'bus/job-queue'],
  ...['schedule/slices', 'schedule/shared-run', 'errors'],
  ...['attachments/queries', 'attachments/requests', 'attachments/request-log'],
  ...['attachments/outcome-header', 'attachments/outcome-index', 'storage/hash-rows'],
  'schedule/id-lock',
  ...['storage/events', 'storage/outbox', 'storage/append-log'],
].map((name) => `agent/${name}.ts`);
const PROTOCOL = ['envelope', 'parse', 'errors', 'events', 'trace-context'].map(
  (name) => `protocol/${name}.ts`,
);
const TIMEOUT_MS = 5_000;

let folder: string;
let control: string;
let stack: Stack;
/** The step that was to throw last. */
let armed = '';

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'volt-throws-'));
  control = join(folder, 'control');
  const hooks = new URL('../../support/planted-throws.ts', import.meta.url).href;
  stack = await startStack({
    env: {
      NODE_OPTIONS: `--import=${hooks}`,
      VOLT_TEST_FILES: [...FILES, ...PROTOCOL].join(','),
      VOLT_TEST_CONTROL: control,
    },
  });
});
afterAll(async () => {
  await stack[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

const codeOf = (error: unknown): string =>
  error instanceof VoltError ? error.code : String(error);

/** Lets a step throw when it is gone next; answers the steps since the last call. */
async function arm(step: string): Promise<{ readonly gone: readonly string[] }> {
  rmSync(`${control}.gone`, { force: true });
  writeFileSync(control, JSON.stringify({ arm: step }));
  process.kill(stack.agent.pid, 'SIGUSR2');
  let found: { arm: string; gone: string[] } | undefined;
  await until(`the agent goes on after ${armed}`, () => {
    found = JSON.parse(readFileSync(`${control}.gone`, 'utf8')) as typeof found;
    return found?.arm === step;
  });
  armed = step;
  return found ?? { gone: [] };
}

const options = { timeoutMs: TIMEOUT_MS };
const vm = (id: string) => ({ id, workload: id, kind: 'vm', network: 'volt0' }) as const;

/** The ways from the bus to an answer or an event; each resolves, or rejects with the answer's error. */
const WAYS = {
  get: (id: string) => stack.client.get('h1', { id }, options),
  list: () => stack.client.list('h1', {}, options),
  check: () => stack.client.check('h1', {}, options),
  attach: (id: string) => stack.client.attach('h1', vm(id), options),
  detach: (id: string) => stack.client.detach('h1', { id }, options),
  job: async (id: string) => {
    // A delivery that was lost comes again after ten seconds.
    const events = stack.client.watch({ signal: AbortSignal.timeout(40_000) });
    const { requestId } = await stack.client.submitAttach('h1', vm(id));
    for await (const { body } of events) if (body['requestId'] === requestId) return body;
    throw new VoltError('DEADLINE_EXCEEDED', 'the job has no event');
  },
};

test.for(Object.entries(WAYS))(
  '%s: any step may throw once',
  { timeout: 240_000 },
  async ([name, way]) => {
    const ids: string[] = [];
    const fresh = (): string => {
      const id = `${name}-${ids.length}`;
      ids.push(id);
      return id;
    };
    await arm('');
    await way(fresh()).catch(() => {});
    const { gone: steps } = await arm('');
    expect(steps.length).toBeGreaterThan(15);
    for (const step of steps) {
      await arm(step);
      const code = await way(fresh()).then(() => 'done', codeOf);
      expect(['done', 'NOT_FOUND', 'INTERNAL', 'INVALID_REQUEST'], step).toContain(code);
      // It may have been on no way: nobody else is to meet it.
      await arm('');
      // Others do not notice.
      const other = await stack.client.get('h1', { id: 'nobody' }, options).catch(codeOf);
      expect(other, step).toBe('NOT_FOUND');
    }
    // Whoever is asked to report such an error reads in the log where it was thrown.
    const causes = stack.agent
      .output()
      .split('\n')
      .filter((line) => line.includes('"code":"INTERNAL"'))
      .map((line) => (JSON.parse(line) as { cause?: unknown }).cause);
    for (const cause of causes) expect(cause).toMatch(/planted at .*\n +at /);
    for (const id of ids) await stack.client.detach('h1', { id }, options);
    expect((await stack.agent.health())['pid']).toBe(stack.agent.pid);
    await until('all is told', async () => (await stack.agent.health())['eventsPending'] === 0);
    await until('nothing is left', async () => {
      const { attachments, unfinished } = await stack.agent.health();
      return attachments === 0 && unfinished === 0;
    });
    expect((await stack.client.getNetwork('volt0')).usage.used).toBe(0);
  },
);
