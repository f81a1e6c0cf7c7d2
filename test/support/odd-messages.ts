import { Encoder } from '@msgpack/msgpack';
import { decode } from '#protocol/envelope.ts';
import { subjects } from '#protocol/subjects.ts';

// Messages as nobody should send them: requests of every kind, changed in their structure or in their bytes, with
// headers and reply subjects that mean no good. One seed is one sequence of messages.

export interface OddMessage {
  readonly subject: string;
  readonly headers?: string | Uint8Array;
  readonly data: Uint8Array;
  /** To answer: an inbox of the sender's, nobody, or a subject on which only others may speak. */
  readonly reply: 'inbox' | 'none' | { readonly subject: string };
  /** Of a job whose payload is whole enough for its event to name it. */
  readonly jobRequestId?: string;
}

const known = subjects();
const encoder = new Encoder({ maxDepth: 64, ignoreUndefined: true, useBigInt64: true });
const IDS = 24;

/** A generator of numbers in [0, 1) that a seed determines (mulberry32). */
export function chance(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d_2b_79_f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

export class OddMessages {
  readonly #random: () => number;
  #jobs = 0;

  constructor(seed: number) {
    this.#random = chance(seed);
  }

  /** All ids that a request of these may attach. */
  static readonly ids: readonly string[] = Array.from({ length: IDS }, (_, n) => `odd-${n}`);

  next(): OddMessage {
    const subject = this.#pick(SUBJECTS);
    const isJob = subject.includes('.job.');
    const requestId = isJob ? `odd-job-${(this.#jobs += 1)}` : undefined;
    const request = { ...this.#request(subject), ...(requestId !== undefined && { requestId }) };
    const style = this.#random();
    let data: Uint8Array;
    let isWhole = false;
    if (style < 0.25) {
      data = encoder.encode(request);
      isWhole = true;
    } else if (style < 0.75) {
      const changed = this.#changed(request);
      data = encoder.encode(changed);
      isWhole = requestId !== undefined && hasText(changed, requestId) && isReadable(data);
    } else if (style < 0.95) {
      data = this.#damaged(encoder.encode(request));
    } else {
      data = this.#bytes(this.#below(200));
    }
    const headers = this.#headers();
    return {
      subject,
      data,
      reply: this.#reply(),
      ...(headers !== undefined && { headers }),
      ...(isWhole && requestId !== undefined && { jobRequestId: requestId }),
    };
  }

  /** A packet for the local socket. */
  packet(): Uint8Array {
    const packet = {
      op: this.#pick(['claim', 'health', 'listen']),
      id: this.#pick(OddMessages.ids),
    };
    const style = this.#random();
    if (style < 0.6) return Buffer.from(JSON.stringify(this.#changed(packet), plain));
    if (style < 0.9) return this.#damaged(Buffer.from(JSON.stringify(packet)));
    return this.#bytes(1 + this.#below(2_000));
  }

  #request(subject: string): Record<string, unknown> {
    const id = this.#pick(OddMessages.ids);
    const network = this.#pick(['volt0', 'volt0', 'volt0', 'odd', 'none']);
    switch (
      subject
        .split('.')
        .slice(subject.includes('.host.') ? -1 : -2)
        .join('.')
    ) {
      case 'attach':
      case 'h1.attach':
        return this.#random() < 0.5
          ? {
              id,
              workload: `vm-${id}`,
              kind: 'vm',
              network,
              tap: { queues: 1 },
              labels: { a: 'b' },
            }
          : { id, workload: id, kind: 'container', network, mtu: 1400, hostname: 'a.b' };
      case 'update':
      case 'h1.update':
        return {
          id,
          labels: { a: 'c' },
          bandwidth: { ingressBitsPerSecond: 1e9 },
          ports: [{ protocol: 'tcp', hostPort: 1 + this.#below(65_535), port: 80 }],
          filterAddresses: ['10.42.0.1'],
        };
      case 'list':
        return { limit: this.#below(100), network, state: 'attached' };
      case 'network.put':
        return {
          network: 'odd',
          subnet: '10.43.0.0/24',
          gateway: '10.43.0.1',
          pool: { start: '10.43.0.2', end: '10.43.0.200' },
          reservations: { 'vm-odd': '10.43.0.9' },
          ipv6: { subnet: 'fd00:43::/64' },
          dns: { servers: ['10.43.0.1'], search: ['a.b'] },
          routes: [{ to: '10.50.0.0/16', via: '10.43.0.7' }],
        };
      case 'network.get':
        return { network };
      case 'network.delete':
        return { network: this.#pick(['odd', 'none']) };
      case 'ledger.forget':
        return { host: this.#pick(['h1', 'h9']) };
      case 'ledger.leases':
        return { network, limit: this.#below(50) };
      default:
        return { id };
    }
  }

  /** With some of its values replaced, taken away or added to. */
  #changed(value: unknown, depth = 0): unknown {
    const roll = this.#random();
    if (depth > 0 && roll < 0.15) return this.#pick(ODD_VALUES);
    if (Array.isArray(value)) return value.map((one) => this.#changed(one, depth + 1));
    if (typeof value !== 'object' || value === null) return value;
    const entries = Object.entries(value)
      .filter(() => this.#random() > 0.05)
      .map(([key, one]): [string, unknown] => [
        this.#random() < 0.03 ? this.#pick(ODD_KEYS) : key,
        this.#random() < 0.7 ? one : this.#changed(one, depth + 1),
      ]);
    if (roll > 0.9) entries.push([this.#pick(ODD_KEYS), this.#pick(ODD_VALUES)]);
    return Object.fromEntries(entries);
  }

  #damaged(bytes: Uint8Array): Uint8Array {
    const damaged = Uint8Array.from(bytes);
    for (let times = 1 + this.#below(3); times > 0; times -= 1) {
      damaged[this.#below(damaged.length)] = this.#below(256);
    }
    if (this.#random() < 0.3) return damaged.subarray(0, this.#below(damaged.length));
    if (this.#random() < 0.2) return Buffer.concat([damaged, this.#bytes(this.#below(64))]);
    return damaged;
  }

  #headers(): string | Uint8Array | undefined {
    const roll = this.#random();
    if (roll < 0.5) return undefined;
    if (roll < 0.6) return Buffer.from(this.#bytes(this.#below(100)));
    const lines = Array.from({ length: 1 + this.#below(3) }, () => this.#pick(ODD_HEADERS));
    return lines.join('\r\n');
  }

  #reply(): OddMessage['reply'] {
    const roll = this.#random();
    if (roll < 0.9) return 'inbox';
    return roll < 0.95 ? 'none' : { subject: this.#pick(ODD_REPLIES) };
  }

  #bytes(length: number): Uint8Array {
    return Uint8Array.from({ length }, () => this.#below(256));
  }

  #below(limit: number): number {
    return Math.floor(this.#random() * limit);
  }

  #pick<T>(from: readonly T[]): T {
    const [first, ...rest] = from;
    if (first === undefined) throw new Error('nothing to pick from');
    return rest[this.#below(from.length) - 1] ?? first;
  }
}

const plain = (_key: string, value: unknown): unknown =>
  typeof value === 'bigint' ? String(value) : value;

function isReadable(data: Uint8Array): boolean {
  try {
    decode(data);
    return true;
  } catch {
    return false;
  }
}

const hasText = (value: unknown, requestId: string): boolean =>
  Object.getOwnPropertyDescriptor(Object(value), 'requestId')?.value === requestId;

const often = (subject: string, times: number): string[] => Array<string>(times).fill(subject);

const SUBJECTS: readonly string[] = [
  ...often(known.host('h1', 'attach'), 12),
  ...often(known.host('h1', 'detach'), 12),
  ...often(known.host('h1', 'update'), 8),
  ...often(known.host('h1', 'get'), 12),
  ...often(known.host('h1', 'list'), 4),
  ...often(known.host('h1', 'check'), 2),
  ...often(known.job('h1', 'attach'), 3),
  ...often(known.job('h1', 'detach'), 3),
  ...often(known.job('h1', 'update'), 2),
  ...often(known.network('put'), 6),
  ...often(known.network('get'), 6),
  ...often(known.network('list'), 2),
  ...often(known.network('delete'), 3),
  ...often(known.ledger('leases'), 2),
  ...often(known.ledger('hosts'), 2),
  ...often(known.ledger('forget'), 2),
  known.ledger('check'),
  `${known.host('h1', 'get')}.more`,
  'volt.net.v1.host.h1.none',
  '$SRV.PING.volt-network-agent',
  '$SRV.INFO.volt-network-agent',
  '$SRV.STATS.volt-network-agent',
];

const deep = (levels: number): unknown => (levels === 0 ? 1 : { a: deep(levels - 1) });

const ODD_VALUES: readonly unknown[] = [
  ...[null, true, -1, 0, 1.5, 2 ** 53, -(2 ** 53), Number.NaN, Number.POSITIVE_INFINITY, 1n << 63n],
  ...['', ' ', 'a\nb', '\u0000', '..', '/', '/proc/self/ns/net', '/dev/zero', 'x'.repeat(70_000)],
  ...['\u{1f4a5}'.repeat(64), '*', '>', '10.42.0.255', '::', '0.0.0.0', 'ff:ff:ff:ff:ff:ff'],
  ...[
    [],
    {},
    [[[]]],
    deep(7),
    deep(20),
    Array<number>(300).fill(1),
    new Uint8Array(10),
    new Date(0),
  ],
];
const ODD_KEYS = [
  '',
  'id',
  '__proto__',
  'constructor',
  'toString',
  'a\nb',
  'x'.repeat(300),
  'dryRun',
];
const ODD_HEADERS = [
  'traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
  'traceparent: 00-0',
  `traceparent: ${'f'.repeat(30_000)}`,
  `tracestate: ${'a=b,'.repeat(1_000)}`,
  'volt-timeout-ms: 1',
  'volt-timeout-ms: -1e999',
  'volt-timeout-ms: 120000',
  'Nats-Msg-Id: odd',
  'ce-source: /volt/network/h2',
  ...['x: a\nb', 'x: a\rb', 'x y: a', ': a', 'x', '', 'x:', '\u00ff: a', 'x:\r\n'.repeat(2_000)],
];
const ODD_REPLIES = [
  'volt.net.v1.event.h2.volt0.attached',
  'volt.net.v1.job.h2.detach',
  'volt.net.v1.host.h1.detach',
  '$JS.API.STREAM.PURGE.VOLT_NET_EVENTS',
  'elsewhere',
];
