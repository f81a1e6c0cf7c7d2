import type { z } from 'zod';
import { VoltError } from './errors.ts';

const MAX_ISSUES = 5;
const MAX_PATH_CHARACTERS = 160;

type Issue = z.core.$ZodIssue;

interface Complaint {
  readonly path: string;
  readonly text: string;
}

/**
 * Checks a value from outside against a strict schema. Throws INVALID_REQUEST; the message names each key
 * that is wrong (the first five), `details.path` the first.
 */
export function parseRequest<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
): z.infer<Schema> {
  const checked = schema.safeParse(value);
  if (checked.success) return checked.data;
  const complaints = checked.error.issues.slice(0, MAX_ISSUES).flatMap(complaintsOf);
  const message = complaints
    .slice(0, MAX_ISSUES)
    .map(({ path, text }) => (path === '' ? text : `${path}: ${text}`));
  throw new VoltError('INVALID_REQUEST', message.join('; '), {
    details: { path: complaints[0]?.path ?? '' },
  });
}

function complaintsOf(issue: Issue): Complaint[] {
  switch (issue.code) {
    case 'unrecognized_keys':
      return issue.keys
        .slice(0, MAX_ISSUES)
        .map((key) => ({ path: pathOf([...issue.path, key]), text: 'unknown key' }));
    case 'invalid_key':
      return [{ path: pathOf(issue.path), text: issue.issues[0]?.message ?? issue.message }];
    default:
      return [{ path: pathOf(issue.path), text: issue.message }];
  }
}

// The sender chose the keys, and may have chosen long ones.
function pathOf(keys: readonly PropertyKey[]): string {
  const path = keys.map(String).join('.');
  return path.length <= MAX_PATH_CHARACTERS ? path : `${path.slice(0, MAX_PATH_CHARACTERS)}…`;
}
