import { VoltError } from '#protocol/errors.ts';
import { Namespace, namespaceIdentity } from '#native/namespace.ts';
import type { AttachmentRecord, Journal } from '../../storage/journal.ts';
import type { Kernel } from '../kernel.ts';
import { hasLeft } from './lost-paths.ts';
import { asRefusal, type NamedNamespace, refuseHostNamespace } from './workload.ts';

/** The path of the namespace that is made for an attachment alone. It is in the record before the namespace is made. */
export function madeNamespace({ before }: Pick<AttachmentRecord, 'before'>): string | undefined {
  const path = before?.['madeNamespace'];
  return typeof path === 'string' ? path : undefined;
}

/** Namespaces that requests name, and those that were made here for one attachment alone. */
export class WorkloadNamespaces {
  readonly #journal: Pick<Journal, 'get' | 'values'>;
  readonly #kernel: Kernel;
  /** Which attachment a namespace was made for, by identity; undefined until somebody asks. */
  #made: Map<string, string> | undefined;

  constructor(options: { journal: Pick<Journal, 'get' | 'values'>; kernel: Kernel }) {
    this.#journal = options.journal;
    this.#kernel = options.kernel;
  }

  /**
   * Looks a path up once. If it cannot be used, `handle` throws the reason, so that another reason to refuse the
   * request comes first. DEADLINE_EXCEEDED: the file system of the path does not answer, and nothing can be said about
   * the request.
   */
  async find(path: string): Promise<NamedNamespace & Disposable> {
    try {
      return this.#judged(path, await Namespace.find(path));
    } catch (error) {
      const refusal = asRefusal(error, path);
      if (!(refusal instanceof VoltError) || refusal.retryable) throw refusal;
      return {
        path,
        identity: undefined,
        get handle(): Namespace {
          throw refusal;
        },
        [Symbol.dispose]: () => {},
      };
    }
  }

  /**
   * True if the namespace that a container was attached in is gone, no matter where its path leads by now (`hasLeft`).
   */
  hasLeft(record: AttachmentRecord): Promise<boolean> {
    return hasLeft(this.#kernel, record);
  }

  /** Notes that a namespace was made for an attachment. */
  note(id: string, { identity }: Namespace): void {
    this.#made?.set(identity, id);
  }

  /** Notes that a namespace is being removed. */
  forget({ identity }: Namespace): void {
    this.#made?.delete(identity);
  }

  #judged(path: string, opened: Namespace): NamedNamespace & Disposable {
    const { identity } = opened;
    const refuse = (): void => {
      refuseHostNamespace(path, identity);
      const owner = this.#ownerOf(identity);
      if (owner === undefined) return;
      const message = `netns: ${path} is the namespace that was made for attachment ${owner}`;
      throw new VoltError('INVALID_REQUEST', message, { details: { path: 'netns', id: owner } });
    };
    return {
      path,
      identity,
      get handle(): Namespace {
        refuse();
        return opened;
      },
      [Symbol.dispose]: () => opened[Symbol.dispose](),
    };
  }

  #ownerOf(identity: string): string | undefined {
    const id = this.#all().get(identity);
    if (id === undefined) return undefined;
    // The attachment may have ended since, and the kernel may have given the number to another namespace.
    const path = madeNamespace(this.#journal.get(id) ?? {});
    if (path !== undefined && namespaceIdentity(path) === identity) return id;
    this.#all().delete(identity);
    return undefined;
  }

  #all(): Map<string, string> {
    this.#made ??= new Map(
      this.#journal.values().flatMap((record) => {
        const path = madeNamespace(record);
        const identity = path === undefined ? undefined : namespaceIdentity(path);
        return identity === undefined ? [] : [[identity, record.id] as const];
      }),
    );
    return this.#made;
  }
}
