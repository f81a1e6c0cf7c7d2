/**
 * Work that can pause wherever it yields, written once for those who need it at once and for those whose event loop
 * has others to serve meanwhile. What is read between two pauses is of one moment, all of it is not.
 */
export type Steps<T> = Generator<void, T, void>;

/** Does all of the work now. */
export function atOnce<T>(steps: Steps<T>): T {
  for (;;) {
    const step = steps.next();
    if (step.done === true) return step.value;
  }
}
