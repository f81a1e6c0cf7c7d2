import { VoltError } from '#protocol/errors.ts';
import { isKernelError } from '#native/errors.ts';
import { isAbsence, Namespace, namespaceIdentity, UnansweredError } from '#native/namespace.ts';
import { Kernel } from '../kernel.ts';

// A container's namespace: the path that a request names, and what it leads to.

/** The namespace that the agent runs in and never leaves. */
const HOST_NAMESPACE = namespaceIdentity('/proc/self/ns/net');

/** The name of a container's interface where the request has none. */
export const DEFAULT_IFNAME = 'eth0';

/** A workload's namespace, and the kernel's configuration seen from inside. */
export interface WorkloadNamespace {
  readonly handle: Namespace;
  readonly path: string;
  readonly kernel: Kernel;
}

/** The namespace that the path of a request led to, looked up once for the whole request. */
export interface NamedNamespace {
  readonly path: string;
  /** `device:inode`; undefined where there is no such namespace. */
  readonly identity: string | undefined;
  /** Throws the VoltError that refuses the request: there is no such namespace, or it is not for workloads. */
  readonly handle: Namespace;
}

/**
 * The namespace of a request: found before, or opened by the constructor. Its first use of `kernel` opens a socket
 * inside it.
 */
export class RequestedNamespace implements WorkloadNamespace, Disposable {
  readonly path: string;
  readonly handle: Namespace;
  readonly #own = new DisposableStack();
  #kernel: Kernel | undefined;

  /**
   * `named` remains the property of the caller that found it. Without it the path is opened here. NAMESPACE_NOT_FOUND:
   * there is no such namespace. INVALID_REQUEST: it is the host's own. DEADLINE_EXCEEDED: its file system does not
   * answer.
   */
  constructor(path: string, named?: NamedNamespace) {
    this.path = path;
    if (named !== undefined) {
      this.handle = named.handle;
      return;
    }
    using opening = new DisposableStack();
    this.handle = opening.use(openNamespaceFile(path));
    refuseHostNamespace(path, this.handle.identity);
    this.#own = opening.move();
  }

  /** Throws INTERFACE_EXISTS when the namespace has an interface of that name. */
  enter(ifname: string): void {
    if (this.kernel.links.indexOf(ifname) === null) return;
    throw new VoltError('INTERFACE_EXISTS', `${this.path} has an interface ${ifname} already`, {
      details: { netns: this.path, ifname },
    });
  }

  get kernel(): Kernel {
    this.#kernel ??= new Kernel(this.handle);
    return this.#kernel;
  }

  [Symbol.dispose](): void {
    this.#kernel?.[Symbol.dispose]();
    this.#own.dispose();
  }
}

/** Opens a namespace by its path; null if there is none, or none any more. UnansweredError: that cannot be told now. */
export function openIfThere(path: string): Namespace | null {
  try {
    return Namespace.open(path);
  } catch (error) {
    if (isAbsence(error) || isKernelError(error, 'EACCES')) return null;
    throw error;
  }
}

/**
 * Asks the file systems of these paths, so that later calls can open each at once. One that hangs takes two seconds.
 */
export async function askForNamespaces(paths: Iterable<string>): Promise<void> {
  await Promise.allSettled(
    [...paths].map(async (path) => {
      using _found = await Namespace.find(path);
    }),
  );
}

function openNamespaceFile(path: string): Namespace {
  try {
    return Namespace.open(path);
  } catch (error) {
    throw asRefusal(error, path);
  }
}

/**
 * The refusal of a path that a request names. If this process lacks something (descriptors, memory), that is no
 * refusal: the error itself is returned.
 */
export function asRefusal(cause: unknown, path: string): unknown {
  if (isKernelError(cause, 'EMFILE', 'ENFILE', 'ENOMEM', 'EINTR', 'ECHILD')) return cause;
  const reason = cause instanceof Error ? cause.message : String(cause);
  const code = cause instanceof UnansweredError ? 'DEADLINE_EXCEEDED' : 'NAMESPACE_NOT_FOUND';
  return new VoltError(code, `netns: ${reason}`, {
    details: { path: 'netns', netns: path },
    cause,
  });
}

export function refuseHostNamespace(path: string, identity: string): void {
  if (identity !== HOST_NAMESPACE) return;
  throw new VoltError('INVALID_REQUEST', `netns: ${path} is the host's own namespace`, {
    details: { path: 'netns' },
  });
}
