import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { until } from './agent.ts';
import { dyingWithParent, requireTool } from './tools.ts';

// Debian's Chromium, in the namespace of the test that starts it, spoken to over the Chrome DevTools Protocol
// (https://chromedevtools.github.io/devtools-protocol/).

const FLAGS = [
  ...['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'],
  ...['--disable-background-networking', '--disable-component-update', '--disable-sync'],
  ...['--disable-dev-shm-usage', '--remote-debugging-port=0'],
];

type Message = Readonly<Record<string, unknown>>;

export interface Page {
  /** What an expression is in the page; promises are awaited. Throws what it throws. */
  evaluate<T>(expression: string): Promise<T>;
  /** Until an expression is true in the page. */
  becomes(expression: string): Promise<void>;
  open(url: string): Promise<void>;
  /** Presses a key by its name in DevTools: `Tab`, `Enter`. */
  press(key: string): Promise<void>;
  /** Types text into what has the focus. */
  type(text: string): Promise<void>;
  send(method: string, params?: object): Promise<Message>;
  /** In a window of that size, for somebody who prefers that scheme, and no motion. */
  show(options: { width: number; height: number; scheme: 'light' | 'dark' }): Promise<void>;
  /** Violations that axe-core finds, of serious and critical impact, with the elements. */
  axe(): Promise<readonly string[]>;
  /** URLs of all requests since it was made, and what went wrong in its scripts. */
  readonly requests: readonly string[];
  readonly problems: readonly string[];
}

export interface Browser extends AsyncDisposable {
  page(): Promise<Page>;
}

const KEYS: Readonly<Record<string, { code: number; text?: string }>> = {
  Tab: { code: 9 },
  Enter: { code: 13, text: '\r' },
};

export async function startChromium(): Promise<Browser> {
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-chromium-'));
  const command = [requireTool('chromium'), ...FLAGS, `--user-data-dir=${folder}`, 'about:blank'];
  const [program, args] = dyingWithParent(command);
  const child = spawn(program, args, {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, HOME: folder },
  });
  const exited = new Promise((resolve) => child.once('exit', resolve));
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => (said += chunk.toString()));
  const address = (): string | undefined => /DevTools listening on (ws:\S+)/.exec(said)?.[1];
  await until('Chromium listens', async () => {
    if (child.exitCode !== null) throw new Error(`Chromium ended: ${said}`);
    return address() !== undefined;
  });
  const { host } = new URL(address() ?? '');
  return {
    page: async () => {
      const made = await fetch(`http://${host}/json/new?about:blank`, { method: 'PUT' });
      const { webSocketDebuggerUrl } = (await made.json()) as { webSocketDebuggerUrl: string };
      return connectTo(webSocketDebuggerUrl);
    },
    async [Symbol.asyncDispose]() {
      child.kill('SIGTERM');
      await exited;
      // Its children write for a moment longer.
      rmSync(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
    },
  };
}

async function connectTo(url: string): Promise<Page> {
  const socket = new WebSocket(url);
  await new Promise((resolve, reject) => {
    socket.addEventListener('open', resolve);
    socket.addEventListener('error', () => reject(new Error(`no connection to ${url}`)));
  });
  const requests: string[] = [];
  const problems: string[] = [];
  const waiting = new Map<number, (message: Message) => void>();
  let last = 0;
  socket.addEventListener('message', ({ data }) => {
    const message = JSON.parse(String(data)) as Message;
    if (typeof message['id'] === 'number') waiting.get(message['id'])?.(message);
    const text = JSON.stringify(message['params'] ?? {});
    if (message['method'] === 'Network.requestWillBeSent') {
      requests.push((message['params'] as { request: { url: string } }).request.url);
    }
    if (message['method'] === 'Runtime.exceptionThrown') problems.push(text);
    // What the policy of the page has refused is told here.
    if (message['method'] === 'Log.entryAdded' && text.includes('"source":"security"')) {
      problems.push(text);
    }
  });
  const send = async (method: string, params: object = {}): Promise<Message> => {
    const id = (last += 1);
    const answered = new Promise<Message>((resolve) => waiting.set(id, resolve));
    socket.send(JSON.stringify({ id, method, params }));
    const { error, result } = await answered;
    waiting.delete(id);
    if (error !== undefined) throw new Error(`${method}: ${JSON.stringify(error)}`);
    return result as Message;
  };
  for (const domain of ['Page', 'Runtime', 'Network', 'Log']) await send(`${domain}.enable`);
  const evaluate = async <T>(expression: string): Promise<T> => {
    const asked = { expression, awaitPromise: true, returnByValue: true };
    const { result, exceptionDetails } = await send('Runtime.evaluate', asked);
    if (exceptionDetails !== undefined) throw new Error(JSON.stringify(exceptionDetails));
    return (result as { value: T }).value;
  };
  return {
    requests,
    problems,
    send,
    evaluate,
    becomes: (expression) => until(expression, () => evaluate<boolean>(`Boolean(${expression})`)),
    open: async (target) => {
      await send('Page.navigate', { url: target });
      await until(`${target} is read`, () => evaluate(`document.readyState === 'complete'`));
    },
    press: async (key) => {
      const { code, text } = KEYS[key] ?? { code: 0 };
      const event = { key, code: key, windowsVirtualKeyCode: code, ...(text && { text }) };
      await send('Input.dispatchKeyEvent', { type: 'keyDown', ...event });
      await send('Input.dispatchKeyEvent', { type: 'keyUp', ...event });
    },
    type: async (text) => {
      await send('Input.insertText', { text });
    },
    show: async ({ width, height, scheme }) => {
      const features = [
        { name: 'prefers-color-scheme', value: scheme },
        { name: 'prefers-reduced-motion', value: 'reduce' },
      ];
      await send('Emulation.setEmulatedMedia', { features });
      const size = { width, height, deviceScaleFactor: 1, mobile: width < 600 };
      await send('Emulation.setDeviceMetricsOverride', size);
    },
    axe: async () => {
      const source = createRequire(import.meta.url).resolve('axe-core/axe.min.js');
      await evaluate(`${readFileSync(source, 'utf8')}; undefined`);
      return evaluate(`axe.run().then(({ violations }) => violations
        .filter(({ impact }) => impact === 'serious' || impact === 'critical')
        .flatMap(({ id, nodes }) => nodes.map((node) => id + ': ' + node.html + ' ' + node.failureSummary)))`);
    },
  };
}
