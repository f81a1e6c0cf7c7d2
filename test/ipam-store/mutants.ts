import { librarySource } from '#ipam-store/library.ts';

// Mistakes, put into a copy of the function library: what a test of one is worth shows when it fails for it.

/** One place of the source, which must be there once, and what the mistake makes of it. */
export type Patch = readonly [right: string, wrong: string];

/** Throws where the source has changed so that the mistake cannot be made as it was. */
export function mutated(patches: readonly Patch[], source = librarySource()): string {
  return patches.reduce((text, [right, wrong]) => {
    const parts = text.split(right);
    if (parts.length === 2) return parts.join(wrong);
    throw new Error(`the library has ${parts.length - 1} places with: ${right}`);
  }, source);
}
