import { fstatSync, readlinkSync } from 'node:fs';
import { Descriptor } from './descriptor.ts';
import { checked, isKernelError } from './errors.ts';
import * as libc from './libc.ts';

// Opens the file of a network namespace under a path that somebody else has chosen. To look a path up asks the file
// systems on the way, and one of them may not answer (FUSE, NFS). To open a file for reading has effects of its own
// (the writer of a FIFO goes on, a device starts). So the path is looked up first (O_PATH), then the file is looked
// at, and only a file of nsfs is opened: it answers at once and does nothing else.

const O_RDONLY = 0;
const O_CLOEXEC = 0o2000000;
const O_NOFOLLOW = 0o400000;
const O_PATH = 0o10000000;
const AT_FDCWD = -100;
const AT_EMPTY_PATH = 0x1000;
/**
 * statx answers from what the kernel knows; fstat(2) and fstatfs(2) would ask the file system, which may not answer.
 */
const AT_STATX_DONT_SYNC = 0x4000;
const STATX_TYPE = 0x1;
const STATX_INO = 0x100;
const STATX_BYTES = 256;
const STX_MODE_OFFSET = 28;
const STX_INO_OFFSET = 32;
const STX_DEV_OFFSET = 136;
const S_IFMT = 0o170000;
const S_IFLNK = 0o120000;
const SYS_OPENAT2 = 437;
const OPEN_HOW_BYTES = 24;
/**
 * The path is looked up only in the kernel's cache: EAGAIN if a file system would have to be asked (Linux 5.12). NFS
 * and 9p are asked all the same if the path ends at their very mount point (d_weak_revalidate).
 */
const RESOLVE_CACHED = 0x20n;
/** _IO(0xb7, 3) of linux/nsfs.h: which CLONE_NEW… the namespace is. */
const NS_GET_NSTYPE = 0xb703;
const CLONE_NEWNET = 0x40000000;

/** /proc is the kernel's, and these links need no look-up: they lead to a namespace, or to a file of our own. */
const IN_PROC = /^\/proc\/(?:(?:\d+|self|thread-self)(?:\/task\/\d+)?\/ns\/[a-z_]+|self\/fd\/\d+)$/;
/** A name in root's own folder: only root can mount something there, or link from there. */
const IN_RUN = /^(?:\/var)?\/run\/netns\/[^/]+$/;
const OWN_PATH = '/proc/thread-self/ns/net';

/** The file is there, but no network namespace. */
export class NotANamespaceError extends Error {
  readonly code = 'NOT_A_NAMESPACE';

  constructor(path: string) {
    super(`${path} is not a network namespace`);
    this.name = 'NotANamespaceError';
  }
}

/** A file system on the way has to be asked, and this thread must not wait for it; or it did not answer in time. */
export class UnansweredError extends Error {
  readonly code = 'UNANSWERED';
  readonly path: string;

  constructor(path: string, options?: ErrorOptions) {
    super(`${path}: its file system does not answer`, options);
    this.name = 'UnansweredError';
    this.path = path;
  }
}

/**
 * Opens the file of a network namespace, and no other file. `at once` never waits for a file system: UnansweredError
 * if it would have to. KernelError (ENOENT, EACCES, ELOOP, …) if the path leads nowhere, NotANamespaceError if it
 * leads to another file.
 */
export function openNamespaceFile(
  path: string,
  wait: 'at once' | 'however long it takes',
): Descriptor {
  using found = wait === 'at once' ? lookUpAtOnce(path) : openPath(path);
  if (identityIn(found) === undefined) throw new NotANamespaceError(path);
  const file = `/proc/self/fd/${found.fd}`;
  const fd = checked(libc.open(file, O_RDONLY | O_CLOEXEC, 0), 'open', path);
  const descriptor = new Descriptor(fd);
  try {
    if (typeOf(fd, path) === CLONE_NEWNET) return descriptor;
  } catch (error) {
    descriptor.close();
    throw error;
  }
  descriptor.close();
  throw new NotANamespaceError(path);
}

/** `device:inode` of the file that a path leads to, if that is a namespace of any kind. Throws as opening it does. */
export function identityAtOnce(path: string): string | undefined {
  using found = lookUpAtOnce(path);
  return identityIn(found);
}

function lookUpAtOnce(path: string): Descriptor {
  if (IN_PROC.test(path)) return openPath(path);
  if (!IN_RUN.test(path)) return openCached(path);
  const own = openPath(path, O_NOFOLLOW);
  if (!isLink(own)) return own;
  own.close();
  const target = readlinkSync(path);
  return IN_PROC.test(target) ? openPath(target) : openCached(path);
}

const openPath = (path: string, more = 0): Descriptor =>
  new Descriptor(checked(libc.open(path, O_PATH | O_CLOEXEC | more, 0), 'open', path));

function openCached(path: string): Descriptor {
  const how = Buffer.alloc(OPEN_HOW_BYTES);
  how.writeBigUInt64LE(BigInt(O_PATH | O_CLOEXEC), 0);
  how.writeBigUInt64LE(RESOLVE_CACHED, 16);
  const result = libc.openat2(SYS_OPENAT2, AT_FDCWD, path, how, how.length);
  try {
    return new Descriptor(checked(result, 'openat2', path));
  } catch (error) {
    // Beside EAGAIN: a kernel, or a filter of system calls, may not know the call.
    if (isKernelError(error, 'EAGAIN', 'ENOSYS', 'EINVAL', 'EPERM'))
      throw new UnansweredError(path, { cause: error });
    throw error;
  }
}

const isLink = (file: Descriptor): boolean =>
  (look(file).readUInt16LE(STX_MODE_OFFSET) & S_IFMT) === S_IFLNK;

/** There is one nsfs, so all of its files are on one device. undefined for a file of another file system. */
function identityIn(file: Descriptor): string | undefined {
  nsfs ??= lookAtNsfs();
  const seen = look(file);
  if (seen.readBigUInt64LE(STX_DEV_OFFSET) !== nsfs.device) return undefined;
  return `${nsfs.dev}:${seen.readBigUInt64LE(STX_INO_OFFSET)}`;
}

/** Major and minor number beside each other, and in one number as fstat(2) has them. */
let nsfs: { readonly device: bigint; readonly dev: number } | undefined;

function lookAtNsfs(): NonNullable<typeof nsfs> {
  using own = openPath(OWN_PATH);
  return { device: look(own).readBigUInt64LE(STX_DEV_OFFSET), dev: fstatSync(own.fd).dev };
}

const looked = Buffer.alloc(STATX_BYTES);

/** The result is overwritten by the next. */
function look({ fd }: Descriptor): Buffer {
  const flags = AT_EMPTY_PATH | AT_STATX_DONT_SYNC;
  checked(libc.statx(fd, '', flags, STATX_TYPE | STATX_INO, looked), 'statx', 'namespace');
  return looked;
}

/** CLONE_NEW… of a namespace file; undefined for another file. Any other error says nothing about the file. */
function typeOf(fd: number, path: string): number | undefined {
  try {
    return checked(libc.ioctl(fd, NS_GET_NSTYPE, null), 'NS_GET_NSTYPE', path);
  } catch (error) {
    if (isKernelError(error, 'ENOTTY', 'EINVAL')) return undefined;
    throw error;
  }
}
