import type { JsonSchema } from './schemas.ts';

// Tables of Markdown, from schemas.

/** A row is what stands in its cells. */
export const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  [head, head.map(() => '---'), ...rows]
    .map((row) => `| ${row.join(' | ')} |`.replaceAll('  |', ' |'))
    .join('\n')
    .replace(
      /^(\|.*\n)(.*)/,
      (_all, first: string, second: string) => first + second.replaceAll(' ', ''),
    );

/**
 * The keys of a map, each with its type and meaning. Keys that follow each other and are alike share a row. `asked`: some
 * keys have to be there.
 */
export function keyTable(map: JsonSchema, asked = map.additionalProperties === false): string {
  const required = new Set(map.required);
  const rows: { keys: string[]; type: string; meaning: string }[] = [];
  for (const [key, property] of Object.entries(map.properties ?? {})) {
    const needed = asked && required.has(key) ? ', required' : '';
    const type = typeOf(property) + needed;
    const meaning = meaningOf(property);
    const before = rows.at(-1);
    if (
      before !== undefined &&
      before.meaning === meaning &&
      meaning !== '' &&
      before.type === type
    ) {
      before.keys.push(key);
    } else {
      rows.push({ keys: [key], type, meaning });
    }
  }
  const cells = rows.map(({ keys, type, meaning }) => [keys.map(code).join(', '), type, meaning]);
  return table(['key', 'type', 'meaning'], cells);
}

/** The map below a key, also where that is an array of maps or may be nil. */
export function at(map: JsonSchema, key: string): JsonSchema {
  const found = map.properties?.[key];
  if (found === undefined) throw new Error(`there is no key ${key}`);
  const inner = found.items ?? found.anyOf?.find(({ properties }) => properties !== undefined);
  return inner ?? found;
}

export const code = (text: string): string => `\`${text}\``;

const meaningOf = ({ description = '', default: usual }: JsonSchema): string => {
  const isTold = usual === undefined || usual === null || description.includes('default');
  if (isTold || typeof usual === 'object') return description;
  return [`default ${code(JSON.stringify(usual))}`, description]
    .filter((part) => part !== '')
    .join(': ');
};

/** A type in words: `integer, 1–253`, `array of text`, `"vm" or "container"`. */
export function typeOf(part: JsonSchema): string {
  if (part.anyOf !== undefined) {
    return part.anyOf.map((one) => (one.type === 'null' ? 'nil' : typeOf(one))).join(' or ');
  }
  if (Array.isArray(part.type)) {
    return typeOf({ anyOf: part.type.map((type) => ({ ...part, type })) });
  }
  if (part.enum !== undefined) return alternatives(part.enum);
  if (part.const !== undefined) return JSON.stringify(part.const);
  switch (part.type) {
    case 'string':
      return 'text';
    case 'integer':
    case 'number':
      return part.type + range(part);
    case 'array':
      return `array of ${plural(typeOf(part.items ?? {}))}`;
    case 'object':
      return typeof part.additionalProperties === 'object' && 'type' in part.additionalProperties
        ? `map of ${plural(typeOf(part.additionalProperties))}`
        : 'map';
    case undefined:
      return 'any';
    default:
      return part.type;
  }
}

const plural = (type: string): string => type.replace(/^(map|integer|number)$/, '$1s');

function alternatives(values: readonly unknown[]): string {
  const texts = values.map((value) => code(JSON.stringify(value)));
  const last = texts.pop() ?? '';
  return texts.length === 0 ? last : `${texts.join(', ')} or ${last}`;
}

function range({ minimum, maximum, exclusiveMinimum }: JsonSchema): string {
  if (exclusiveMinimum !== undefined) {
    const most = maximum === undefined ? '' : `, at most ${maximum}`;
    return `, more than ${exclusiveMinimum}${most}`;
  }
  if (minimum === undefined) return maximum === undefined ? '' : `, at most ${maximum}`;
  if (maximum === undefined) return `, ${minimum} or more`;
  return `, ${minimum}–${maximum}`;
}
