import type { z } from 'zod';
import { VoltError } from './errors.ts';

const MAX_ISSUES = 5;

/**
 * Checks a value from outside against a strict schema. Throws INVALID_REQUEST; the message names each key
 * that is wrong, `details.path` the first.
 */
export function parseRequest<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
): z.infer<Schema> {
  const checked = schema.safeParse(value);
  if (checked.success) return checked.data;
  const issues = checked.error.issues.slice(0, MAX_ISSUES).map((issue) => {
    const keys = issue.code === 'unrecognized_keys' ? [...issue.path, ...issue.keys] : issue.path;
    const text = issue.code === 'unrecognized_keys' ? 'unknown key' : issue.message;
    return { path: keys.join('.'), text };
  });
  const message = issues.map(({ path, text }) => (path === '' ? text : `${path}: ${text}`));
  throw new VoltError('INVALID_REQUEST', message.join('; '), {
    details: { path: issues[0]?.path ?? '' },
  });
}
