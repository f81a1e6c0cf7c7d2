import koffi from 'koffi';

/**
 * Calls back when a descriptor can be read, until disposed. The callback must read until EAGAIN or expect to
 * be called again. koffi's interface to libuv may change between versions, so this is its only user.
 */
export function watchReadable(fd: number, onReadable: () => void): Disposable {
  const watch = koffi.node.poll(fd, { readable: true }, () => onReadable());
  return { [Symbol.dispose]: () => watch.close() };
}
