import { type ChildProcessByStdio, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { InterfaceAddress, MacAddress } from '#protocol/address.ts';
import { Kernel } from '#agent/host/kernel.ts';
import { dyingWithParent, requireTool } from '../support/tools.ts';

const SOURCE = fileURLToPath(new URL('floor.c', import.meta.url));
/** No agent takes devices of this group for its own. */
const GROUP = 77;
const BRIDGE_GROUP = 78;
const BRIDGE = 'floor0';
/** No network of a bench is there. */
const GATEWAY = '172.31.0.1';
const BRIDGE_MAC = '02:00:00:00:4f:01';

/** What C took for one device, in milliseconds. */
export interface FloorTime {
  readonly totalMs: number;
  /** Without the opening of the workload's namespace. */
  readonly stretchMs: number;
}

/**
 * The same devices as an agent's, made in C (floor.c) on a bridge of their own: what the kernel takes, whoever asks it.
 * The times are those that C itself has measured; they hold no start of a process and no pipe.
 */
export class Floor implements AsyncDisposable {
  readonly #kernel = new Kernel();
  readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly #ended: Promise<unknown>;
  readonly #waiting: ((line: string) => void)[] = [];
  #said = '';
  #made = 0;

  constructor() {
    const { links, addresses } = this.#kernel;
    const mac = MacAddress.parse(BRIDGE_MAC);
    const { index } = links.createBridge({ name: BRIDGE, mac, group: BRIDGE_GROUP });
    addresses.add({ ifindex: index, address: InterfaceAddress.parse(`${GATEWAY}/16`) });
    links.set(index, { up: true });
    const command = [compiled(), BRIDGE, String(GROUP), GATEWAY];
    const [program, args] = dyingWithParent(command);
    this.#child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'] });
    createInterface({ input: this.#child.stdout }).on('line', (line) =>
      this.#waiting.shift()?.(line),
    );
    this.#child.stderr.on('data', (chunk: Buffer) => (this.#said += chunk.toString()));
    this.#ended = new Promise((resolve) => this.#child.once('close', resolve));
    void this.#ended.then(() => {
      for (const answer of this.#waiting.splice(0)) answer('');
    });
  }

  async tap(): Promise<FloorTime> {
    const n = this.#next();
    return this.#ask(`tap floor-t${n} ${macOf(n)}`);
  }

  /** A veth pair whose other end is `eth0` in a namespace. */
  async veth(netns: string): Promise<FloorTime> {
    const n = this.#next();
    const address = `172.31.${1 + ((n >> 8) % 250)}.${n & 255}`;
    return this.#ask(`veth floor-v${n} ${macOf(n)} ${netns} ${address}`);
  }

  /** So many TAPs one after the other, in seconds. */
  async taps(count: number): Promise<number> {
    const all = await Promise.all(Array.from({ length: count }, () => this.tap()));
    return all.reduce((sum, { totalMs }) => sum + totalMs, 0) / 1_000;
  }

  /** Names of the TAPs that stand, the last ones first. */
  lastTaps(count: number): string[] {
    return Array.from({ length: count }, (_, n) => `floor-t${this.#made - n}`);
  }

  /** Removes all devices that were made. */
  async clear(): Promise<void> {
    await this.#kernel.links.deleteGroupAsync(GROUP);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin.end();
    await this.#ended;
    await this.clear();
    await this.#kernel.links.deleteGroupAsync(BRIDGE_GROUP);
    this.#kernel[Symbol.dispose]();
  }

  #next(): number {
    this.#made += 1;
    return this.#made;
  }

  async #ask(order: string): Promise<FloorTime> {
    const line = await new Promise<string>((resolve) => {
      this.#waiting.push(resolve);
      this.#child.stdin.write(`${order}\n`);
    });
    const [total, stretch] = line.split(' ').map(Number);
    if (total === undefined || stretch === undefined) throw new Error(`${order}: ${this.#said}`);
    return { totalMs: total / 1_000, stretchMs: stretch / 1_000 };
  }
}

function macOf(n: number): string {
  const octets = [n >> 16, n >> 8, n].map((part) => (part & 255).toString(16).padStart(2, '0'));
  return `02:4f:00:${octets.join(':')}`;
}

let program: string | undefined;

/** The path of the program, which is compiled once in each run. */
function compiled(): string {
  if (program !== undefined) return program;
  const path = join(mkdtempSync(join(tmpdir(), 'volt-bench-floor-')), 'floor');
  execFileSync(requireTool('cc'), ['-O2', '-Wall', '-Wextra', '-Werror', '-o', path, SOURCE]);
  program = path;
  return path;
}
