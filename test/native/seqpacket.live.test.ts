import { randomBytes } from 'node:crypto';
import { chmodSync, mkdtempSync } from 'node:fs';
import { release } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { Descriptor } from '#native/descriptor.ts';
import { checked, isKernelError } from '#native/errors.ts';
import * as libc from '#native/libc.ts';
import { MAX_PACKET_BYTES, sendPacket } from '#native/packet.ts';
import { listenSeqpacket, type ListenOptions, type SeqpacketServer } from '#native/seqpacket.ts';
import { MAX_CONNECTIONS_PER_UID } from '#native/shares.ts';
import { firstPacket, requestSeqpacket } from '#native/unix.ts';
import { connectTo, openSocket, SOCK_NONBLOCK, SOCK_SEQPACKET } from '#native/unix-socket.ts';
import { until } from '../support/agent.ts';

// A socket that anybody may connect to, and what somebody does there to keep others from it.

const AF_INET = 2;
const SOCK_STREAM = 1;
const SOL_SOCKET = 1;
const SO_RCVBUF = 8;
const SO_LINGER = 13;
const MSG_DONTWAIT = 0x40;
/** What lies unread in each socket of somebody who sends and sends. */
const PACKETS_EACH = 8;
/** Longer than anybody here waits. */
const LINGER_SECONDS = 30;

const [major = 0, minor = 0] = release().split('.').map(Number);
const REFUSES = major > 6 || (major === 6 && minor >= 16);

const folder = mkdtempSync('/run/seqpacket-');
chmodSync(folder, 0o755);
const path = `${folder}/socket`;
let open = new AsyncDisposableStack();
afterEach(async () => {
  await open.disposeAsync();
  open = new AsyncDisposableStack();
});

/** A server that gives every packet back. */
const echo = (more: Partial<ListenOptions> = {}): SeqpacketServer =>
  open.use(
    listenSeqpacket({
      path,
      mode: 0o666,
      onConnection: (connection) => connection.onPacket((bytes) => connection.send(bytes)),
      ...more,
    }),
  );

function connect(uid = 0): Descriptor {
  const socket = open.use(openSocket(SOCK_SEQPACKET | SOCK_NONBLOCK));
  process.seteuid?.(uid);
  try {
    connectTo(socket, path);
  } finally {
    process.seteuid?.(0);
  }
  return socket;
}

/** What the server gives back; empty once it has closed the connection. */
async function answered(socket: Descriptor, text: string): Promise<string> {
  try {
    sendPacket(socket.fd, Buffer.from(text));
    return (await firstPacket(socket.fd, path, 5_000)).bytes.toString();
  } catch {
    return '';
  }
}

const isServed = async (): Promise<string> =>
  (await requestSeqpacket(path, Buffer.from('another'), { timeoutMs: 5_000 })).bytes.toString();

/** A TCP socket whose last owner waits in close(2): it lingers, and its peer takes nothing more. */
function lingering(): Descriptor {
  const listener = open.use(tcpSocket());
  const size = Buffer.alloc(4);
  size.writeInt32LE(4_096);
  checked(libc.setsockopt(listener.fd, SOL_SOCKET, SO_RCVBUF, size, size.length), 'RCVBUF', 'tcp');
  const address = Buffer.alloc(16);
  address.writeUInt16LE(AF_INET, 0);
  address.set([127, 0, 0, 1], 4);
  checked(libc.bind(listener.fd, address, address.length), 'bind', 'tcp');
  checked(libc.listen(listener.fd, 1), 'listen', 'tcp');
  checked(libc.getsockname(listener.fd, address, [address.length]), 'getsockname', 'tcp');
  const socket = tcpSocket();
  checked(libc.connect(socket.fd, address, address.length), 'connect', 'tcp');
  const bytes = Buffer.alloc(64 * 1_024);
  while (libc.send(socket.fd, bytes, bytes.length, MSG_DONTWAIT) > 0);
  const linger = Buffer.alloc(8);
  linger.writeInt32LE(1, 0);
  linger.writeInt32LE(LINGER_SECONDS, 4);
  checked(libc.setsockopt(socket.fd, SOL_SOCKET, SO_LINGER, linger, 8), 'SO_LINGER', 'tcp');
  return socket;
}

const tcpSocket = (): Descriptor =>
  new Descriptor(checked(libc.socket(AF_INET, SOCK_STREAM | 0o2000000, 0), 'socket', 'tcp'));

/** Sends a lingering socket. The copy here is closed while the packet has another, and so does not wait. */
function sendLingering(socket: Descriptor, text: string): void {
  using foreign = lingering();
  sendPacket(socket.fd, Buffer.from(text), [foreign.fd]);
}

describe('descriptors that a peer sends', () => {
  test('are refused by the kernel before they are sent (Linux 6.16), or end the connection', async () => {
    echo();
    const socket = connect();
    let refusal = '';
    try {
      sendPacket(socket.fd, Buffer.from('x'), [0]);
    } catch (error) {
      refusal = String(error);
    }
    expect(refusal).toMatch(REFUSES ? /EPERM/ : /^$/);
    expect(await answered(socket, 'hello')).toBe(REFUSES ? 'hello' : '');
  });

  describe('on a kernel that cannot refuse them', () => {
    const without = { refuseDescriptors: false };

    test('end the connection, and nobody waits for what closing them takes', async () => {
      echo(without);
      const socket = connect();
      sendLingering(socket, 'with a descriptor');
      expect(await isServed()).toBe('another');
      expect(await answered(socket, 'more')).toBe('');
    });

    test('neither behind packets that nobody has read, nor after the peer has gone', async () => {
      const kept: { close: () => void }[] = [];
      echo({ ...without, onConnection: (connection) => void kept.push(connection) });
      const socket = connect();
      sendPacket(socket.fd, Buffer.alloc(0));
      sendPacket(socket.fd, Buffer.from('first'));
      sendLingering(socket, '');
      await until('it is accepted', () => kept.length === 1);
      socket.close();
      const started = performance.now();
      for (const connection of kept) connection.close();
      expect(performance.now() - started).toBeLessThan((LINGER_SECONDS / 2) * 1_000);
    });

    test('nor where the connection is not admitted', async () => {
      const server = echo(without);
      const sockets = Array.from({ length: MAX_CONNECTIONS_PER_UID }, () => connect(4_000));
      for (const socket of sockets) sendPacket(socket.fd, Buffer.from('x'));
      const refused = connect(4_000);
      sendLingering(refused, 'with a descriptor');
      expect(await isServed()).toBe('another');
      expect(await answered(refused, 'more')).toBe('');
      server.close();
    });

    test('count as their sender’s connection until they are closed', async () => {
      echo(without);
      const hostile = Array.from({ length: MAX_CONNECTIONS_PER_UID }, () => connect(4_001));
      for (const socket of hostile) sendLingering(socket, 'with a descriptor');
      await until('they are closed', async () => (await answered(connect(4_001), 'in')) === 'in');
      expect(await isServed()).toBe('another');
    });
  });
});

describe('a connection', () => {
  test('stays open for more packets, and is closed when none comes for the idle time', async () => {
    echo({ idleMs: 300 });
    const [busy, idle] = [connect(), connect()];
    for (let n = 0; n < 6; n += 1) {
      expect(await answered(busy, String(n))).toBe(String(n));
      await sleep(100);
    }
    expect(await answered(idle, 'late')).toBe('');
  });

  test('is neither read nor closed as idle while its packet is dealt with', async () => {
    const taken: string[] = [];
    const gates: (() => void)[] = [];
    echo({
      idleMs: 200,
      onConnection: (connection) =>
        connection.onPacket(async (bytes) => {
          taken.push(bytes.toString());
          await new Promise<void>((resolve) => void gates.push(resolve));
          connection.send(bytes);
        }),
    });
    const socket = connect();
    sendPacket(socket.fd, Buffer.from('first'));
    sendPacket(socket.fd, Buffer.from('second'));
    await until('one is taken', () => taken.length > 0);
    await sleep(500);
    expect(taken).toEqual(['first']);
    gates.shift()?.();
    await until('the next is taken', () => taken.length > 1);
    gates.shift()?.();
    const answers = [
      await firstPacket(socket.fd, path, 5_000),
      await firstPacket(socket.fd, path, 5_000),
    ];
    expect(answers.map(({ bytes }) => bytes.toString())).toEqual(['first', 'second']);
    // It is idle from here on.
    expect((await firstPacket(socket.fd, path, 5_000)).bytes).toHaveLength(0);
  });

  const lengths = [1, MAX_PACKET_BYTES - 1, MAX_PACKET_BYTES + 1, 20 * MAX_PACKET_BYTES + 7];
  test.each(lengths)(
    'carries %d bytes in packets that are full but for the last',
    async (length) => {
      const content = randomBytes(length);
      echo({
        onConnection: (connection) =>
          connection.onPacket(() => connection.sendAll(content, { timeoutMs: 10_000 })),
      });
      const { bytes } = await requestSeqpacket(path, Buffer.from('x'));
      expect(bytes.equals(content)).toBe(true);
    },
  );

  test('gives a peer up that takes an answer in part, and one that goes meanwhile', async () => {
    const failures: string[] = [];
    echo({
      onConnection: (connection) =>
        connection.onPacket(async (bytes) => {
          const timeoutMs = bytes.toString() === 'slow' ? 200 : 60_000;
          const content = Buffer.alloc(20 * MAX_PACKET_BYTES + 1);
          await connection.sendAll(content, { timeoutMs }).catch((error: unknown) => {
            failures.push(isKernelError(error) ? error.code : String(error));
          });
        }),
    });
    sendPacket(connect().fd, Buffer.from('slow'));
    const gone = connect();
    sendPacket(gone.fd, Buffer.from('gone'));
    expect((await firstPacket(gone.fd, path, 5_000)).bytes).toHaveLength(MAX_PACKET_BYTES);
    gone.close();
    await until('both are given up', () => failures.length === 2);
    expect(failures.toSorted()).toEqual([
      expect.stringMatching(/^E(PIPE|CONNRESET)$/),
      'ETIMEDOUT',
    ]);
  });

  test('of a client has no answer without end', async () => {
    echo({
      onConnection: (connection) =>
        connection.onPacket(async () => {
          const endless = Buffer.alloc(128 * MAX_PACKET_BYTES);
          await connection.sendAll(endless, { timeoutMs: 10_000 }).catch(() => {});
        }),
    });
    await expect(requestSeqpacket(path, Buffer.from('x'))).rejects.toMatchObject({
      code: 'EMSGSIZE',
    });
  });

  test('is read a packet at a time, another account’s next, and other work in between', async () => {
    const served: number[] = [];
    const turns: number[] = [];
    let inTurn = 0;
    echo({
      onConnection: (connection) =>
        connection.onPacket(() => {
          served.push(connection.peer.uid);
          inTurn += 1;
          const end = performance.now() + 1;
          while (performance.now() < end);
        }),
    });
    const greedy = Array.from({ length: MAX_CONNECTIONS_PER_UID }, () => connect(6_000));
    for (const socket of greedy) {
      for (let n = 0; n < PACKETS_EACH; n += 1) sendPacket(socket.fd, Buffer.from('x'));
    }
    const other = connect(6_001);
    sendPacket(other.fd, Buffer.from('x'));
    while (served.length < greedy.length * PACKETS_EACH + 1) {
      await new Promise((resolve) => setImmediate(resolve));
      turns.push(inTurn);
      inTurn = 0;
    }
    expect(Math.max(...turns)).toBeLessThan(greedy.length);
    expect(served.indexOf(6_001)).toBeLessThan(greedy.length * 2);
  });

  test('is had by whoever comes last, when one account after another has taken all it may', async () => {
    echo();
    const first = connect(5_000);
    const greedy: Descriptor[] = [];
    for (let uid = 5_001; uid <= 5_008; uid += 1) {
      for (let n = 0; n < MAX_CONNECTIONS_PER_UID; n += 1) greedy.push(connect(uid));
      expect(await isServed()).toBe('another');
    }
    // One had to go for it that belongs to somebody who has many.
    const newcomer = connect(5_009);
    expect(await answered(newcomer, 'in')).toBe('in');
    expect(await answered(first, 'still in')).toBe('still in');
    expect(await answered(connect(5_008), 'one too many')).toBe('');
    expect(await isServed()).toBe('another');
  });
});
