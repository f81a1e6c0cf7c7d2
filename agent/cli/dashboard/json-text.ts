import { printable } from '#protocol/printable.ts';

/** What turns the direction of text, or has no width, is written out: two names that look alike are the same. */
export const jsonText = (value: unknown): string =>
  JSON.stringify(value, (_key, one: unknown) => (typeof one === 'string' ? printable(one) : one));
