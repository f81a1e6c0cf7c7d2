import { tracingChannel } from 'node:diagnostics_channel';

/** One operation of the kernel, as published on `volt:kernel`. Kept small: it is made for every call. */
export interface KernelOperation {
  /** `RTM_NEWLINK`, `TUNSETIFF`, `setns`, `sysctl`. */
  readonly operation: string;
  /** `tap-web`, `10.42.0.5/24 dev eth0`. */
  readonly subject: string;
}

export const KERNEL_CHANNEL = 'volt:kernel';

/**
 * Kernel operations for tracing: `start`, `end` and `error` of each. Whoever traces subscribes; without a
 * subscriber an operation costs one property read.
 */
const channel = tracingChannel<KernelOperation>(KERNEL_CHANNEL);

/** Runs `work` as the named operation. Errors pass through. */
export function traced<T>(operation: string, subject: string, work: () => T): T {
  if (!channel.hasSubscribers) return work();
  return channel.traceSync(work, { operation, subject });
}

/** The operations that `work` begins, in order. */
export function operationsDuring(work: () => void): KernelOperation[] {
  const seen: KernelOperation[] = [];
  const subscriber = {
    start: ({ operation, subject }: KernelOperation) => void seen.push({ operation, subject }),
    end: () => {},
    asyncStart: () => {},
    asyncEnd: () => {},
    error: () => {},
  };
  channel.subscribe(subscriber);
  try {
    work();
  } finally {
    channel.unsubscribe(subscriber);
  }
  return seen;
}
