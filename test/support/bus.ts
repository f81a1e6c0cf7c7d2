import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Bus, type BusEndpoint, type BusProblemName } from '#agent/bus/bus.ts';
import { type Config, loadConfig } from '#agent/config.ts';
import type { Delivery } from '#agent/bus/jobs.ts';
import { createLog } from '#agent/log.ts';
import { encodeAnswer } from '#protocol/envelope.ts';
import { DEFAULT_PREFIX, subjects } from '#protocol/subjects.ts';

/** An agent's bus without the agent: it answers `get` and `list` of its host with its name, and ends every job. */
export interface TestBus extends AsyncDisposable {
  readonly bus: Bus;
  /** Subjects of jobs, in order. */
  readonly jobs: string[];
  /** Names of what is wrong now; with their subjects where they have one. */
  readonly problems: () => string[];
  readonly reasonOf: (name: BusProblemName) => string | undefined;
  readonly publish: (type: string, id: string) => Promise<void>;
}

export function startBus({
  url,
  host = 'h1',
  prefix = DEFAULT_PREFIX,
  nats = {},
  act = true,
  listMs = 0,
}: {
  url: string;
  host?: string;
  prefix?: string;
  /** More of that section of agent.json. */
  nats?: object;
  act?: boolean;
  /** How long `list` takes. */
  listMs?: number;
}): TestBus {
  const jobs: string[] = [];
  const ours = subjects(prefix);
  const endpoint = (name: 'get' | 'list'): BusEndpoint => ({
    name,
    subject: ours.host(host, name),
    queue: `host-${host}`,
    asHost: true,
    answer: async () => {
      if (name === 'list') await sleep(listMs);
      return { payload: encodeAnswer({ fleet: prefix, host }) };
    },
  });
  const bus = new Bus({
    config: natsConfig({ url, ...nats }, host),
    host,
    version: '1.0.0',
    metadata: () => ({ host, fleet: prefix, generation: '7' }),
    endpoints: [endpoint('get'), endpoint('list')],
    subjectPrefix: prefix,
    notices: { subject: ours.changed('*', 'definition'), hear: () => {} },
    takeJob: async (delivery: Delivery) => {
      jobs.push(delivery.subject);
      await delivery.done().catch(() => {});
    },
    log: createLog('silent', host),
    onState: () => {},
  });
  bus.act(act ? undefined : { code: 'HOST_CONFLICT', message: 'another machine is this host' });
  bus.start();
  return {
    bus,
    jobs,
    problems: () =>
      bus
        .problems()
        .map(({ name, subject }) => (subject === undefined ? name : `${name} ${subject}`)),
    reasonOf: (name) => bus.problems().find((one) => one.name === name)?.reason,
    publish: (type, id) =>
      bus.publishEvent({
        subject: ours.event(host, 'volt0', type),
        id,
        headers: {},
        payload: encodeAnswer({ id }),
      }),
    async [Symbol.asyncDispose]() {
      await bus.stopTaking();
      await bus.close();
    },
  };
}

/** The section `nats` of an agent's configuration, with its defaults. */
export function natsConfig(nats: object, host: string): Config['nats'] {
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-config-'));
  try {
    const file = join(folder, 'agent.json');
    writeFileSync(file, JSON.stringify({ host, nats }));
    return loadConfig({ file, env: {} }).nats;
  } finally {
    rmSync(folder, { recursive: true });
  }
}
