import { randomBytes } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { fileURLToPath } from 'node:url';
import { setTimeout as sleep } from 'node:timers/promises';
import { run, Running } from './processes.ts';
import { TraceReceiver } from './trace-receiver.ts';
import type { Span } from '#protocol/waterfall.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const AGENT = `${ROOT}deploy/bin/volt-network-agent`;
const VOLTNET = `${ROOT}deploy/bin/voltnet`;
const FOLDER = '/run/demo';
const CONFIG = `${FOLDER}/agent.json`;
const READY_MS = 15_000;
const TRACE_MS = 10_000;

export const HOST = 'h1';
export const RUNTIME_DIR = '/run/volt-vmm/network';

/** One host with all it needs: servers, agent, a place for traces, and the command line to talk to it. */
export class World implements AsyncDisposable {
  readonly #running: Running[] = [];
  readonly #env: NodeJS.ProcessEnv;
  #traces: TraceReceiver | undefined;
  #agent: Running | undefined;

  constructor(env: NodeJS.ProcessEnv) {
    const foreign = /^(OTEL_|VOLT_|TRACE|NO_COLOR|NODE_)/;
    this.#env = {
      ...Object.fromEntries(Object.entries(env).filter(([name]) => !foreign.test(name))),
      VOLT_NET_HOST: HOST,
      VOLT_NET_RUNTIME_DIR: RUNTIME_DIR,
    };
    mkdirSync(`${FOLDER}/nats`, { recursive: true });
    mkdirSync(`${FOLDER}/redis`);
    const config = { host: HOST, stateDir: `${FOLDER}/state`, networksDir: `${FOLDER}/networks` };
    writeFileSync(CONFIG, JSON.stringify(config));
  }

  async startNats(): Promise<void> {
    const words = ['nats-server', '-a', '127.0.0.1', '-p', '4222', '-js', '-sd', `${FOLDER}/nats`];
    await this.#start('nats-server', words).until(() => accepts(4222), READY_MS);
  }

  async startRedis(): Promise<void> {
    const folder = ['--dir', `${FOLDER}/redis`];
    const words = ['redis-server', '--bind', '127.0.0.1', '--save', '', ...folder];
    await this.#start('redis-server', words).until(() => accepts(6379), READY_MS);
  }

  /** The agent, exporting its traces to us; ready when it has both servers. */
  async startAgent(): Promise<void> {
    this.#traces = await TraceReceiver.start();
    const agent = this.#start('volt-network-agent', [AGENT, '--config', CONFIG], {
      OTEL_EXPORTER_OTLP_ENDPOINT: this.#traces.url,
      OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json',
      OTEL_BSP_SCHEDULE_DELAY: '100',
      OTEL_METRICS_EXPORTER: 'none',
    });
    this.#agent = agent;
    await agent.until(
      () =>
        this.voltnet(['status']).then(
          () => true,
          () => false,
        ),
      READY_MS,
    );
  }

  /** SIGTERM; resolves when it is gone. Throws unless it ends by itself and well. */
  async stopAgent(): Promise<void> {
    const code = await this.#agent?.stop();
    if (code !== 0) throw new Error(`the agent ended with ${code}:\n${this.#agent?.output}`);
  }

  /** `voltnet watch`, beside; its lines go to `onLine`. */
  async watch(onLine: (line: string) => void): Promise<void> {
    const watch = this.#start('voltnet watch', [VOLTNET, 'watch']);
    await watch.until(() => watch.output.includes('watching'), READY_MS);
    watch.onLine(onLine);
  }

  /** Runs `voltnet` to its end; what it printed. */
  voltnet(
    words: readonly string[],
    options: { input?: string; traceparent?: string } = {},
  ): Promise<string> {
    const { input, traceparent } = options;
    const env = traceparent === undefined ? this.#env : { ...this.#env, TRACEPARENT: traceparent };
    return run([VOLTNET, ...words], { env, ...(input !== undefined && { input }) });
  }

  /** Any other program of the machine. */
  run(words: readonly string[]): Promise<string> {
    return run(words, { env: this.#env });
  }

  /** `voltnet exec`, beside: the VM. */
  exec(words: readonly string[]): Running {
    return this.#start('virtual machine', [VOLTNET, 'exec', ...words]);
  }

  /**
   * What an orchestrator does: a span of its own, and `voltnet` run as part of it. The trace is complete
   * when the event of the outcome has been published.
   */
  async traced(
    name: string,
    words: readonly string[],
    lastSpan: string,
  ): Promise<{ output: string; spans: () => Promise<Span[]> }> {
    const traceId = randomBytes(16).toString('hex');
    const spanId = randomBytes(8).toString('hex');
    const start = nowNs();
    const output = await this.voltnet(words, { traceparent: `00-${traceId}-${spanId}-01` });
    const own: Span = { traceId, spanId, name, start, end: nowNs(), failed: false, attributes: {} };
    const spans = async (): Promise<Span[]> => {
      if (this.#traces === undefined) throw new Error('nobody receives traces');
      return [own, ...(await this.#traces.trace(traceId, lastSpan, TRACE_MS))];
    };
    return { output, spans };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // The last started goes first: nobody loses what it depends on.
    for (const running of this.#running.toReversed()) await running.stop();
    await this.#traces?.[Symbol.asyncDispose]();
  }

  #start(name: string, words: readonly string[], env: NodeJS.ProcessEnv = {}): Running {
    const running = new Running(name, words, { ...this.#env, ...env });
    this.#running.push(running);
    return running;
  }
}

const nowNs = (): bigint => BigInt(Math.round((performance.timeOrigin + performance.now()) * 1e6));

async function accepts(port: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1');
  const connected = await new Promise<boolean>((resolve) => {
    socket.once('connect', () => resolve(true));
    socket.once('error', () => resolve(false));
  });
  socket.destroy();
  if (!connected) await sleep(20);
  return connected;
}
