import { connect, createServer, type Socket } from 'node:net';

/** A way to a port of 127.0.0.1 that a test can shut: whoever uses it is cut off, and nobody else. */
export interface Gate extends Disposable {
  readonly port: number;
  /** Ends the connections that there are, and takes no more until `open`. */
  shut(): void;
  open(): void;
}

export async function startGate(target: number): Promise<Gate> {
  const sockets = new Set<Socket>();
  let isOpen = true;
  const server = createServer((near) => {
    if (!isOpen) {
      near.destroy();
      return;
    }
    const far = connect({ host: '127.0.0.1', port: target });
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(one);
      one.pipe(other);
      one.on('error', () => {});
      one.once('close', () => {
        sockets.delete(one);
        other.destroy();
      });
    }
  });
  const { promise, resolve } = Promise.withResolvers<void>();
  server.listen(0, '127.0.0.1', resolve);
  await promise;
  const address = server.address();
  const shut = (): void => {
    isOpen = false;
    for (const socket of sockets) socket.destroy();
  };
  return {
    port: typeof address === 'object' && address !== null ? address.port : 0,
    shut,
    open: () => {
      isOpen = true;
    },
    [Symbol.dispose]: () => {
      shut();
      server.close();
    },
  };
}
