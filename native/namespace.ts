import {
  chmodSync,
  closeSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { Descriptor } from './descriptor.ts';
import { checked, isKernelError } from './errors.ts';
import * as libc from './libc.ts';
import {
  identityAtOnce,
  NotANamespaceError,
  openNamespaceFile,
  UnansweredError,
} from './namespace-file.ts';
import { lookUpAside, recentlyFound } from './namespace-lookup.ts';
import { traced } from './trace.ts';

const CLONE_NEWNET = 0x40000000;
/** linux/sockios.h: opens the network namespace of a socket (close-on-exec). */
const SIOCGSKNS = 0x894c;
const MS_BIND = 0x1000;
const MS_SHARED = 0x100000;
const MS_REC = 0x4000;
const MNT_DETACH = 2;
const OWN_PATH = '/proc/thread-self/ns/net';

export { NotANamespaceError, UnansweredError } from './namespace-file.ts';

/**
 * A network namespace, held open. While it is held it outlives its last process, so hold it no longer than needed:
 * `using`.
 */
export class Namespace implements Disposable {
  readonly #descriptor: Descriptor;
  /** `device:inode`: equal for every path and descriptor of the same namespace. */
  readonly identity: string;
  readonly #path: string;

  private constructor(descriptor: Descriptor, path: string) {
    this.#descriptor = descriptor;
    this.#path = path;
    this.identity = identityOf(fstatSync(descriptor.fd));
  }

  /**
   * Opens `/run/netns/NAME`, `/proc/PID/ns/net` or another file of a namespace, without waiting for a file system:
   * UnansweredError if one has to be asked. It is asked then, and the same call may succeed a little later.
   * KernelError (ENOENT, EACCES, ELOOP, …) if the path leads nowhere, NotANamespaceError if it leads to another file.
   */
  static open(path: string): Namespace {
    try {
      return new Namespace(openNamespaceFile(path, 'at once'), path);
    } catch (error) {
      if (!(error instanceof UnansweredError)) throw error;
      const descriptor = recentlyFound(path);
      if (descriptor === undefined) throw error;
      return new Namespace(descriptor, path);
    }
  }

  /** As `open`, with two seconds for file systems that have to be asked: UnansweredError after that. */
  static async find(path: string): Promise<Namespace> {
    try {
      return new Namespace(openNamespaceFile(path, 'at once'), path);
    } catch (error) {
      if (!(error instanceof UnansweredError)) throw error;
    }
    return new Namespace(await lookUpAside(path), path);
  }

  /** The namespace of a socket, in whichever namespace its process is by now. */
  static ofSocket(fd: number): Namespace {
    const subject = `socket ${fd}`;
    const own = checked(libc.ioctl(fd, SIOCGSKNS, null), 'SIOCGSKNS', subject);
    return new Namespace(new Descriptor(own), subject);
  }

  /** The namespace of the calling thread. */
  static current(): Namespace {
    return Namespace.open(OWN_PATH);
  }

  /**
   * Makes a namespace and binds it to `path`, as `ip netns add` does for paths under /run/netns. EEXIST when
   * the path is taken; nothing is left when a step fails.
   */
  static create(path: string): Namespace {
    return traced('unshare', path, () => {
      prepareFolder(dirname(path));
      closeSync(openSync(path, 'ax', 0o400));
      try {
        const before = here();
        checked(libc.unshare(CLONE_NEWNET), 'unshare', path);
        try {
          checked(libc.mount(OWN_PATH, path, 'none', MS_BIND, null), 'mount', path);
        } finally {
          enter(before);
        }
        return Namespace.open(path);
      } catch (error) {
        libc.umount2(path, MNT_DETACH);
        rmSync(path, { force: true });
        throw error;
      }
    });
  }

  /** Makes a namespace without a path, which goes with its last descriptor. */
  static createUnnamed(): Namespace {
    return traced('unshare', 'unnamed', () => {
      const before = here();
      checked(libc.unshare(CLONE_NEWNET), 'unshare', 'network');
      try {
        return Namespace.current();
      } finally {
        enter(before);
      }
    });
  }

  /** Unbinds a path that `create` or `ip netns add` made. Success when it is gone. */
  static remove(path: string): void {
    traced('umount', path, () => {
      // Asked first: a process without the right to unmount gets EPERM also if nothing is mounted there, and would
      // try for ever.
      if (lstatSync(path, { throwIfNoEntry: false }) === undefined) return;
      try {
        checked(libc.umount2(path, MNT_DETACH), 'umount', path);
      } catch (error) {
        // EINVAL: a file that nothing is mounted on.
        if (!isKernelError(error, 'ENOENT', 'EINVAL')) throw error;
      }
      rmSync(path, { force: true });
    });
  }

  get fd(): number {
    return this.#descriptor.fd;
  }

  /**
   * Runs `work` with this thread inside the namespace, and comes back to where it was. `work` must not be async: a
   * promise would finish in some other namespace, and file calls on the thread pool never enter this one. If the way
   * back fails, the process ends: nothing that it did afterwards could be trusted.
   */
  run<T>(work: () => T): T {
    const before = here();
    checked(libc.setns(this.fd, CLONE_NEWNET), 'setns', this.#path);
    note(this);
    let result: T;
    try {
      result = work();
    } finally {
      enter(before);
    }
    if (result instanceof Promise) {
      throw new TypeError('Namespace.run: the work must not be asynchronous');
    }
    return result;
  }

  [Symbol.dispose](): void {
    this.#descriptor.close();
  }
}

/** `device:inode` of a namespace's file, following links; undefined if the path leads to none. Throws as `open`. */
export function namespaceIdentity(path: string): string | undefined {
  try {
    return identityAtOnce(path);
  } catch (error) {
    if (error instanceof UnansweredError) return identityAsked(path);
    if (isAbsence(error)) return undefined;
    throw error;
  }
}

function identityAsked(path: string): string | undefined {
  try {
    using namespace = Namespace.open(path);
    return namespace.identity;
  } catch (error) {
    if (isAbsence(error)) return undefined;
    throw error;
  }
}

/** True for the errors of opening a path that leads to no network namespace; any other error leaves that open. */
export const isAbsence = (error: unknown): boolean =>
  error instanceof NotANamespaceError ||
  isKernelError(error, 'ENOENT', 'ENOTDIR', 'ELOOP', 'ENAMETOOLONG', 'ENXIO', 'ENODEV');

const identityOf = ({ dev, ino }: { dev: number; ino: number }): string => `${dev}:${ino}`;

// The namespace to come back to. Only `create` and `run` move the thread, and they bring it back, so it is opened
// once. A program that moves its thread for good (a test's sandbox) does so before.
let home: Namespace | undefined;

/** Where the thread is now, if `run` has brought it elsewhere. */
let inside: Namespace | undefined;

/** Whether the calling thread is where it was before any `run`: in its own namespace, as the kernel says. */
export function isAtHome(): boolean {
  return home === undefined || namespaceIdentity(OWN_PATH) === home.identity;
}

/** For a thread that ends: closes the descriptors that `create` and `run` have kept open for it. */
export function closeHome(): void {
  home?.[Symbol.dispose]();
  home = undefined;
}

function here(): Namespace {
  home ??= Namespace.current();
  return inside ?? home;
}

function enter(before: Namespace): void {
  if (libc.setns(before.fd, CLONE_NEWNET) < 0) {
    process.stderr.write('cannot return to the network namespace that I came from\n');
    process.abort();
  }
  note(before);
}

function note(namespace: Namespace): void {
  inside = namespace === home ? undefined : namespace;
}

/** A folder whose mounts are seen in mount namespaces made later, as `ip netns` prepares /run/netns. */
function prepareFolder(folder: string): void {
  // Whatever the umask of this process is: others have to be able to enter namespaces.
  if (mkdirSync(folder, { recursive: true }) !== undefined) chmodSync(folder, 0o755);
  if (isMountPoint(folder)) return;
  checked(libc.mount(folder, folder, 'none', MS_BIND | MS_REC, null), 'mount', folder);
  checked(libc.mount('', folder, 'none', MS_SHARED | MS_REC, null), 'mount', folder);
}

function isMountPoint(folder: string): boolean {
  // The fifth field is the mount point (proc_pid_mountinfo(5)).
  return readFileSync('/proc/thread-self/mountinfo', 'utf8')
    .split('\n')
    .some((line) => line.split(' ')[4] === folder);
}
