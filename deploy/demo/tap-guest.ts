import { readSync, writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { IpAddress, MacAddress } from '#protocol/address.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { watchReadable } from '#native/poll.ts';
import {
  arpReply,
  arpRequest,
  type Echo,
  echoReply,
  echoRequest,
  parseFrame,
  type Station,
} from './frames.ts';

const MAX_FRAME_BYTES = 65_536;
const READS_AT_ONCE = 64;
const IDENTIFIER = 0x564f;

/**
 * The smallest virtual machine there is: it holds a TAP's descriptor as a VMM does, answers ARP and pings,
 * and pings others. It reads and writes frames behind a virtio header of zeros: no offload.
 */
export class TapGuest implements Disposable {
  readonly #descriptor: Descriptor;
  readonly #headerBytes: number;
  readonly #self: Station;
  readonly #watch: Disposable;
  readonly #neighbours = new Map<string, Station>();
  readonly #replies = new Set<number>();
  readonly #buffer = Buffer.alloc(MAX_FRAME_BYTES);
  #sequence = 0;
  answered = 0;

  constructor(options: {
    descriptor: Descriptor;
    vnetHdrSize: number;
    mac: string;
    address: string;
  }) {
    this.#descriptor = options.descriptor;
    this.#headerBytes = options.vnetHdrSize;
    this.#self = {
      mac: MacAddress.parse(options.mac).toBytes(),
      address: IpAddress.parse(options.address).toBytes(),
    };
    this.#watch = watchReadable(options.descriptor.fd, () => this.#read());
  }

  /** Sends one ping; milliseconds until its answer. Throws after `timeoutMs`. */
  async ping(address: string, timeoutMs: number): Promise<number> {
    const target = IpAddress.parse(address).toBytes();
    const end = performance.now() + timeoutMs;
    const neighbour = await this.#neighbour(target, end);
    this.#sequence += 1;
    const sequence = this.#sequence;
    const started = performance.now();
    const echo: Echo = {
      identifier: IDENTIFIER,
      sequence,
      payload: Buffer.from('volt'.repeat(14)),
    };
    this.#write(echoRequest(this.#self, neighbour, echo));
    while (!this.#replies.has(sequence)) {
      if (performance.now() > end) throw new Error(`${address} does not answer the VM's ping`);
      await sleep(1);
    }
    return performance.now() - started;
  }

  [Symbol.dispose](): void {
    this.#watch[Symbol.dispose]();
    this.#descriptor.close();
  }

  async #neighbour(target: Uint8Array, end: number): Promise<Station> {
    const key = Buffer.from(target).toString('hex');
    for (let tries = 0; ; tries += 1) {
      const known = this.#neighbours.get(key);
      if (known !== undefined) return known;
      if (performance.now() > end) throw new Error("nobody answers the VM's ARP request");
      if (tries % 100 === 0) this.#write(arpRequest(this.#self, target));
      await sleep(2);
    }
  }

  #read(): void {
    for (let reads = 0; reads < READS_AT_ONCE; reads += 1) {
      let length: number;
      try {
        length = readSync(this.#descriptor.fd, this.#buffer);
      } catch (error) {
        if (error instanceof Error && 'code' in error && error.code === 'EAGAIN') return;
        throw error;
      }
      this.#receive(this.#buffer.subarray(this.#headerBytes, length));
    }
  }

  #receive(frame: Buffer): void {
    const received = parseFrame(frame, this.#self);
    if (received === undefined) return;
    const { from } = received;
    switch (received.kind) {
      case 'arp-request':
        this.#write(arpReply(this.#self, from));
        break;
      case 'arp-reply':
        this.#neighbours.set(Buffer.from(from.address).toString('hex'), from);
        break;
      case 'echo-request':
        this.answered += 1;
        this.#write(echoReply(this.#self, from, received.echo));
        break;
      case 'echo-reply':
        this.#replies.add(received.echo.sequence);
        break;
    }
  }

  #write(frame: Buffer): void {
    writeSync(this.#descriptor.fd, Buffer.concat([Buffer.alloc(this.#headerBytes), frame]));
  }
}
