import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

/** A span as a collector gets it. Times in nanoseconds since 1970. */
export interface ReceivedSpan {
  readonly traceId: string;
  readonly spanId: string;
  /** Empty for a root. */
  readonly parentSpanId: string;
  readonly name: string;
  /** SpanKind of trace.proto: internal 1, server 2, client 3, producer 4, consumer 5. */
  readonly kind: number;
  readonly start: bigint;
  readonly end: bigint;
  readonly failed: boolean;
  readonly attributes: Readonly<Record<string, string | number>>;
  readonly links: readonly { readonly traceId: string; readonly spanId: string }[];
}

/** Takes spans by OTLP over HTTP in protobuf, as a collector does. */
export async function receiveTraces(): Promise<
  AsyncDisposable & { readonly url: string; readonly spans: readonly ReceivedSpan[] }
> {
  const spans: ReceivedSpan[] = [];
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      spans.push(...spansIn(Buffer.concat(chunks)));
      response.writeHead(200, { 'content-type': 'application/x-protobuf' }).end();
    });
  });
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1/traces`,
    spans,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => {
        server.close(resolve);
      });
    },
  };
}

/** ExportTraceServiceRequest (opentelemetry-proto, collector/trace/v1 and trace/v1). */
const spansIn = (request: Buffer): ReceivedSpan[] =>
  messages(request, 1)
    .flatMap((resource) => messages(resource, 2))
    .flatMap((scope) => messages(scope, 2))
    .map((span) => ({
      traceId: hex(span, 1),
      spanId: hex(span, 2),
      parentSpanId: hex(span, 4),
      name: text(span, 5),
      kind: number(span, 6),
      start: fixed64(span, 7),
      end: fixed64(span, 8),
      failed: messages(span, 15).some((status) => number(status, 3) === 2),
      attributes: Object.fromEntries(
        messages(span, 9).map((pair) => {
          const [value = Buffer.alloc(0)] = messages(pair, 2);
          return [
            text(pair, 1),
            fields(value).some(([id]) => id === 3) ? number(value, 3) : text(value, 1),
          ];
        }),
      ),
      links: messages(span, 13).map((link) => ({ traceId: hex(link, 1), spanId: hex(link, 2) })),
    }));

type Field = readonly [id: number, value: bigint | Buffer];

/** The fields of a message (protobuf.dev/programming-guides/encoding). */
function fields(message: Buffer): Field[] {
  const found: Field[] = [];
  let at = 0;
  const varint = (): bigint => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = message.readUInt8(at++);
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  };
  const bytes = (length: number): Buffer => {
    at += length;
    return message.subarray(at - length, at);
  };
  while (at < message.length) {
    const key = Number(varint());
    const id = key >> 3;
    const wireType = key & 7;
    if (wireType === 0) found.push([id, varint()]);
    else if (wireType === 1) found.push([id, bytes(8)]);
    else if (wireType === 2) found.push([id, bytes(Number(varint()))]);
    else if (wireType === 5) found.push([id, bytes(4)]);
    else throw new Error(`wire type ${wireType}`);
  }
  return found;
}

const messages = (message: Buffer, id: number): Buffer[] =>
  fields(message).flatMap(([one, value]) => (one === id && Buffer.isBuffer(value) ? [value] : []));
const hex = (message: Buffer, id: number): string =>
  messages(message, id).at(-1)?.toString('hex') ?? '';
const text = (message: Buffer, id: number): string =>
  messages(message, id).at(-1)?.toString('utf8') ?? '';
const fixed64 = (message: Buffer, id: number): bigint =>
  messages(message, id).at(-1)?.readBigUInt64LE() ?? 0n;
const number = (message: Buffer, id: number): number =>
  Number(fields(message).findLast(([one]) => one === id)?.[1] ?? 0);
