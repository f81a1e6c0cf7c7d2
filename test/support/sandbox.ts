import { mkdirSync } from 'node:fs';
import { checked } from '#native/errors.ts';
import { close, ioctl, mount, socket, unshare } from '#native/libc.ts';

// linux/sched.h, sys/mount.h, sys/socket.h, linux/sockios.h, net/if.h
const CLONE_NEWNS = 0x0002_0000;
const CLONE_NEWNET = 0x4000_0000;
const MS_NOSUID = 0x2;
const MS_NODEV = 0x4;
const MS_NOEXEC = 0x8;
const MS_BIND = 0x1000;
const MS_REC = 0x4000;
const MS_PRIVATE = 0x4_0000;
const MS_SHARED = 0x10_0000;
const AF_INET = 2;
const SOCK_DGRAM_CLOEXEC = 2 | 0o2000000;
const SIOCSIFFLAGS = 0x8914;
const IFF_UP = 1;
const IFREQ_BYTES = 40;
const IFNAMSIZ = 16;

/**
 * Moves the calling thread, and every process it starts from now on, into a network and a mount namespace
 * of its own: `lo` up and nothing else, an empty tmpfs on /run, a /sys that shows the new network, and
 * /run/netns as `ip netns` would have made it. The kernel removes it all with the process.
 *
 * libuv's threads may exist already and stay outside: promises of `node:fs` see the machine's own /run and
 * /sys. Live tests use the synchronous calls there. Sockets of `node:net` are made on the main thread.
 *
 * Needs root (CAP_SYS_ADMIN). Throws KernelError.
 */
export function enterSandbox(): void {
  checked(unshare(CLONE_NEWNET | CLONE_NEWNS), 'unshare', 'network and mounts (needs root)');
  mountOn('/', { flags: MS_REC | MS_PRIVATE });
  mountOn('/run', { type: 'tmpfs', flags: MS_NOSUID | MS_NODEV, options: 'mode=755' });
  mountOn('/sys', { type: 'sysfs', flags: MS_NOSUID | MS_NODEV | MS_NOEXEC });
  mkdirSync('/run/netns', { mode: 0o755 });
  // Shared, so that a namespace bound here later is seen in mount namespaces made before (`ip netns exec`).
  mountOn('/run/netns', { source: '/run/netns', flags: MS_BIND | MS_REC });
  mountOn('/run/netns', { flags: MS_REC | MS_SHARED });
  setLoopbackUp();
}

function mountOn(
  target: string,
  what: { source?: string; type?: string; flags: number; options?: string },
): void {
  const { source = what.type ?? 'none', type = null, flags, options = null } = what;
  checked(mount(source, target, type, flags, options), 'mount', target);
}

// By ioctl rather than netlink: the sandbox must stand also when netlink is what a test finds broken.
function setLoopbackUp(): void {
  const fd = checked(socket(AF_INET, SOCK_DGRAM_CLOEXEC, 0), 'socket', 'AF_INET');
  try {
    const request = Buffer.alloc(IFREQ_BYTES);
    request.write('lo');
    request.writeUInt16LE(IFF_UP, IFNAMSIZ);
    checked(ioctl(fd, SIOCSIFFLAGS, request), 'SIOCSIFFLAGS', 'lo');
  } finally {
    close(fd);
  }
}
