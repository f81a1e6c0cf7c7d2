/**
 * Work that can pause wherever it yields: written once for callers who need it at once, and for callers whose event
 * loop has to serve others meanwhile. Everything read between two pauses is of one moment; the whole is not.
 */
export type Steps<T> = Generator<void, T, void>;

/** Does all of the work now. */
export function atOnce<T>(steps: Steps<T>): T {
  for (;;) {
    const step = steps.next();
    if (step.done === true) return step.value;
  }
}
