import { runAside } from './aside.ts';
import { Descriptor } from './descriptor.ts';
import { checked, isKernelError, KernelError } from './errors.ts';
import { fcntl } from './libc.ts';
import { NotANamespaceError, UnansweredError } from './namespace-file.ts';

// Namespaces under paths whose file systems have to be asked: a process of its own looks them up.

const F_DUPFD_CLOEXEC = 1030;
const ANSWER_WITHIN_MS = 2_000;
/**
 * How long a namespace that was found is kept for a caller who has to open it without waiting. No longer, since that
 * keeps the namespace alive.
 */
const KEPT_MS = 5_000;

/** The end of a path: a namespace, or the reason why there is none. */
type Outcome = { readonly descriptor: Descriptor } | { readonly error: Error };

const recent = new Map<string, Outcome>();
const asked = new Map<string, Promise<Outcome>>();

/** The descriptor is the caller's. Rejects as `openNamespaceFile` throws, and with UnansweredError after two seconds. */
export async function lookUpAside(path: string): Promise<Descriptor> {
  return taken(await (asked.get(path) ?? ask(path)));
}

/**
 * The namespace that was found a moment ago, or its error thrown; undefined if nothing was, and then it is asked for
 * now.
 */
export function recentlyFound(path: string): Descriptor | undefined {
  const known = recent.get(path);
  if (known !== undefined) return taken(known);
  if (!asked.has(path)) ask(path).catch(() => {});
  return undefined;
}

function ask(path: string): Promise<Outcome> {
  const asking = answered(path).finally(() => asked.delete(path));
  asked.set(path, asking);
  return asking;
}

async function answered(path: string): Promise<Outcome> {
  const outcome = await outcomeOf(path);
  forget(path, recent.get(path));
  recent.set(path, outcome);
  setTimeout(() => forget(path, outcome), KEPT_MS).unref();
  return outcome;
}

/** Rejects where it cannot be told. */
async function outcomeOf(path: string): Promise<Outcome> {
  const errand = { request: { open: path }, timeoutMs: ANSWER_WITHIN_MS, key: path };
  const { bytes, descriptors } = await runAside(errand).catch((cause: unknown) => {
    throw isKernelError(cause, 'ETIMEDOUT', 'ECHILD')
      ? new UnansweredError(path, { cause })
      : cause;
  });
  const [descriptor] = descriptors;
  if (descriptor !== undefined) return { descriptor };
  const refusal: unknown = JSON.parse(bytes.toString());
  if (typeof refusal === 'object' && refusal !== null && 'errno' in refusal) {
    const errno = Number(refusal.errno);
    return { error: new KernelError({ operation: 'open', subject: path, errno }) };
  }
  return { error: new NotANamespaceError(path) };
}

function forget(path: string, outcome: Outcome | undefined): void {
  if (outcome === undefined) return;
  if ('descriptor' in outcome) outcome.descriptor.close();
  if (recent.get(path) === outcome) recent.delete(path);
}

/** A copy, for the caller. */
function taken(outcome: Outcome): Descriptor {
  if ('error' in outcome) throw outcome.error;
  const { fd } = outcome.descriptor;
  return new Descriptor(checked(fcntl(fd, F_DUPFD_CLOEXEC, 0), 'dup', 'namespace'));
}
