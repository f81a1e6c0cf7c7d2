import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';

const STOP_TIMEOUT_MS = 10_000;
const KEPT_OUTPUT = 200_000;

/** A program that runs beside the demo. Its output is kept, to be shown when something goes wrong. */
export class Running {
  readonly name: string;
  readonly #child: ChildProcess;
  readonly #ended: Promise<void>;
  readonly #listeners = new Set<() => void>();
  #output = '';
  #failure: Error | undefined;

  constructor(name: string, words: readonly string[], env: NodeJS.ProcessEnv) {
    this.name = name;
    // The kernel ends it also when the demo is killed and cannot.
    const args = ['--pdeathsig', 'TERM', '--', ...words];
    this.#child = spawn('setpriv', args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    const keep = (chunk: Buffer): void => {
      this.#output = (this.#output + chunk.toString('utf8')).slice(-KEPT_OUTPUT);
      for (const listener of this.#listeners) listener();
    };
    this.#child.stdout?.on('data', keep);
    this.#child.stderr?.on('data', keep);
    this.#ended = new Promise((resolve) => {
      this.#child.once('error', (error) => {
        this.#failure = error;
        resolve();
      });
      this.#child.once('close', () => resolve());
    });
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  get output(): string {
    return this.#output;
  }

  get exitCode(): number | null {
    return this.#child.exitCode;
  }

  get running(): boolean {
    return this.#failure === undefined && this.exitCode === null && this.#child.signalCode === null;
  }

  /** Calls back with each new line from now on. */
  onLine(listener: (line: string) => void): void {
    let seen = this.#output.length;
    this.#listeners.add(() => {
      for (let end = this.#output.indexOf('\n', seen); end >= 0;) {
        listener(this.#output.slice(seen, end));
        seen = end + 1;
        end = this.#output.indexOf('\n', seen);
      }
    });
  }

  /** Asks it to end, insists after ten seconds; its exit code, or null when it had to be killed. */
  async stop(): Promise<number | null> {
    if (this.running) {
      this.#child.kill('SIGTERM');
      await Promise.race([this.#ended, sleep(STOP_TIMEOUT_MS, undefined, { ref: false })]);
      if (this.running) this.#child.kill('SIGKILL');
    }
    await this.#ended;
    return this.exitCode;
  }

  /** Resolves once `ready` says so; throws with the output when it ends or `timeoutMs` pass before. */
  async until(ready: () => boolean | Promise<boolean>, timeoutMs: number): Promise<void> {
    const end = performance.now() + timeoutMs;
    while (!(await ready())) {
      if (this.#failure !== undefined) throw this.#failure;
      const ended = !this.running;
      if (ended || performance.now() > end) {
        const what = ended ? 'ended' : `was not ready within ${timeoutMs / 1_000} s`;
        throw new Error(`${this.name} ${what}:\n${this.#output.trimEnd().slice(-4_000)}`);
      }
      await sleep(10);
    }
  }
}

/** Runs a program to its end. Throws with everything that it printed unless it exits 0. */
export async function run(
  words: readonly string[],
  options: { env: NodeJS.ProcessEnv; input?: string },
): Promise<string> {
  const [file = '', ...args] = words;
  const child = spawn(file, args, { env: options.env, stdio: ['pipe', 'pipe', 'pipe'] });
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString('utf8')));
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString('utf8')));
  child.stdin.on('error', () => {}); // it may end without reading
  child.stdin.end(options.input ?? '');
  await once(child, 'close');
  if (child.exitCode === 0) return stdout;
  const code = child.exitCode ?? child.signalCode;
  throw new Error(`${words.join(' ')}: exit code ${code}\n${stdout}${stderr}`.trimEnd());
}
