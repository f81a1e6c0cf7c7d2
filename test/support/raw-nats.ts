import { connect, type Socket } from 'node:net';
import { once } from 'node:events';

/** What came, unread. */
export interface RawMessage {
  readonly subject: string;
  readonly reply: string;
  /** `NATS/1.0\r\n…`; undefined where the message has none. */
  readonly headers: Buffer | undefined;
  readonly data: Buffer;
}

const NEWLINE = '\r\n';

/**
 * A client of NATS that sends what it is given: headers that no client library would. Of NATS's protocol it speaks what
 * a test needs: CONNECT, PUB, HPUB, SUB, MSG, HMSG, PING.
 */
export class RawNats implements Disposable {
  readonly #socket: Socket;
  readonly #subscribers = new Map<string, (message: RawMessage) => void>();
  #unread = Buffer.alloc(0);
  #sid = 0;
  #pongs: (() => void)[] = [];

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (chunk) => {
      this.#unread = Buffer.concat([this.#unread, chunk]);
      while (this.#next());
    });
    socket.on('error', () => {});
  }

  static async open(url: string): Promise<RawNats> {
    const { hostname, port } = new URL(url);
    const socket = connect({ host: hostname, port: Number(port) });
    await once(socket, 'connect');
    const client = new RawNats(socket);
    client.#write('CONNECT {"verbose":false,"headers":true,"no_responders":true}', NEWLINE);
    await client.flush();
    return client;
  }

  /** `headers` goes out as it is, after `NATS/1.0` and before the empty line. */
  publish(message: {
    subject: string;
    reply?: string;
    headers?: string | Uint8Array;
    data?: Uint8Array;
  }): void {
    const { subject, reply = '', headers, data = new Uint8Array() } = message;
    if (headers === undefined) {
      this.#write(`PUB ${subject} ${reply} ${data.length}${NEWLINE}`, data, NEWLINE);
      return;
    }
    const all = Buffer.concat([
      Buffer.from(`NATS/1.0${NEWLINE}`),
      Buffer.from(headers),
      Buffer.from(NEWLINE + NEWLINE),
    ]);
    const sizes = `${all.length} ${all.length + data.length}`;
    this.#write(`HPUB ${subject} ${reply} ${sizes}${NEWLINE}`, all, data, NEWLINE);
  }

  subscribe(subject: string, take: (message: RawMessage) => void): void {
    this.#sid += 1;
    this.#subscribers.set(String(this.#sid), take);
    this.#write(`SUB ${subject} ${this.#sid}`, NEWLINE);
  }

  /** Resolves when the server has taken all that was sent before. */
  flush(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#pongs.push(resolve);
    this.#write('PING', NEWLINE);
    return promise;
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }

  #write(...parts: readonly (string | Uint8Array)[]): void {
    this.#socket.write(Buffer.concat(parts.map((part) => Buffer.from(part))));
  }

  /** False where no whole operation has come. */
  #next(): boolean {
    const end = this.#unread.indexOf(NEWLINE);
    if (end === -1) return false;
    const words = this.#unread.toString('utf8', 0, end).split(' ');
    const [operation = '', subject = '', sid = ''] = words;
    let from = end + NEWLINE.length;
    if (operation === 'MSG' || operation === 'HMSG') {
      const total = Number(words.at(-1));
      const headerBytes = operation === 'HMSG' ? Number(words.at(-2)) : 0;
      if (this.#unread.length < from + total + NEWLINE.length) return false;
      const bytes = this.#unread.subarray(from, from + total);
      from += total + NEWLINE.length;
      const sizes = operation === 'HMSG' ? 2 : 1;
      this.#subscribers.get(sid)?.({
        subject,
        reply: words.length > 3 + sizes ? (words[3] ?? '') : '',
        headers: headerBytes === 0 ? undefined : bytes.subarray(0, headerBytes),
        data: bytes.subarray(headerBytes),
      });
    } else if (operation === 'PING') {
      this.#write('PONG', NEWLINE);
    } else if (operation === 'PONG') {
      this.#pongs.shift()?.();
    } else if (operation === '-ERR') {
      throw new Error(`nats-server: ${words.slice(1).join(' ')}`);
    }
    this.#unread = this.#unread.subarray(from);
    return true;
  }
}
