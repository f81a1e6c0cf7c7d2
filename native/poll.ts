import { fstatSync } from 'node:fs';
import koffi from 'koffi';
import { fcntl } from './libc.ts';

const F_GETFD = 1;

const watched = new Set<number>();

/**
 * Calls back whenever a descriptor can be read, has failed or has lost its peer, until disposed. The callback reads
 * until EAGAIN, or is called again. It also has to read errors off the descriptor, or it is called for ever. An
 * exception of the callback is an uncaught exception of the process.
 *
 * The watch keeps the process alive. Dispose of it before the descriptor is closed: the number may be somebody else's
 * at once. Throws if the descriptor is closed, watched already, or a file that poll(2) cannot watch. The descriptor
 * becomes non-blocking.
 *
 * koffi's interface to libuv may change between versions, so this is its only user.
 */
export function watchReadable(fd: number, onReadable: () => void): Disposable {
  // koffi ends the process where libuv refuses a descriptor.
  const stat = fstatSync(fd);
  if (stat.isFile() || stat.isDirectory()) throw new TypeError(`descriptor ${fd} is a file`);
  if (watched.has(fd)) throw new Error(`descriptor ${fd} is watched already`);
  const handle = koffi.node.poll(fd, { readable: true }, onEvent);
  watched.add(fd);
  let disposed = false;

  // koffi's types leave out the first argument, libuv's status.
  function onEvent(...[status]: unknown[]): void {
    try {
      onReadable();
    } catch (error) {
      // An exception from here would stay pending in koffi, and surface in whatever runs next.
      setImmediate(() => {
        throw error;
      });
    }
    // libuv gives up a descriptor that has an error pending: a netlink socket that overran, a unix socket whose peer
    // left packets unread. The callback has read the error off; later events must still be heard.
    const stopped = typeof status === 'number' && status < 0;
    if (stopped && !disposed && fcntl(fd, F_GETFD, 0) >= 0) {
      handle.start({ readable: true }, onEvent);
    }
  }

  return {
    [Symbol.dispose]: () => {
      if (disposed) return;
      disposed = true;
      watched.delete(fd);
      handle.close();
    },
  };
}
