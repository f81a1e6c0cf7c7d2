import fc from 'fast-check';
import { z } from 'zod';

// Text as a stranger would put it on the bus, and values of the protocol's schemas that are full of it.

/** First and last of: C0 without the line feed, DEL and C1, what has no width or turns direction, halves of pairs. */
const ACTING: readonly (readonly [number, number])[] = [
  [0x00, 0x09],
  [0x0b, 0x1f],
  [0x7f, 0x9f],
  [0xad, 0xad],
  [0x034f, 0x034f],
  [0x061c, 0x061c],
  [0x115f, 0x1160],
  [0x180b, 0x180f],
  [0x200b, 0x200f],
  [0x2028, 0x202e],
  [0x2060, 0x206f],
  [0x3164, 0x3164],
  [0xd800, 0xdfff],
  [0xfe00, 0xfe0f],
  [0xfeff, 0xfeff],
  [0xffa0, 0xffa0],
  [0xfff0, 0xfffb],
  [0xe_0000, 0xe_0fff],
];

/** What of a text a terminal would act upon instead of showing it; a line feed is none of it. */
export const actsOnTerminals = (text: string): string[] =>
  Array.from(text, (character) => character.codePointAt(0) ?? 0)
    .filter((code) => ACTING.some(([first, last]) => code >= first && code <= last))
    .map((code) => `U+${code.toString(16)}`);

const SEQUENCES = [
  '\x1b[2J\x1b[H',
  '\x1b]0;title\x07',
  '\x1b]52;c;cm0gLXJmIC8=\x07',
  '\x9b31m',
  '\x1bP$q"p\x1b\\',
  '\r\n',
  '\nvoltnet: all is well',
  '\x08\x08\x08',
  '\u202etxt.exe',
  '\u2066\u2069',
  '\u2028',
  '\u200b\u200d\ufeff',
  '\u{e0041}',
];

/** At least one such character in each; no half of a pair, which nobody can send. */
export const hostileText = (): fc.Arbitrary<string> =>
  fc
    .tuple(
      fc.array(fc.integer({ min: 0, max: 0x10_ffff }), { maxLength: 6 }),
      fc.constantFrom(...SEQUENCES),
      fc.array(fc.integer({ min: 0, max: 0x9f }), { maxLength: 4 }),
    )
    .map(([any, sequence, controls]) =>
      [
        ...any.map((code) => String.fromCodePoint(code)),
        sequence,
        String.fromCodePoint(...controls),
      ]
        .join('')
        .toWellFormed(),
    );

/** What stands where a schema says nothing. */
const anything = (): fc.Arbitrary<unknown> =>
  fc.anything({ key: hostileText(), values: [hostileText(), fc.integer()], maxDepth: 2 });

interface Shape {
  readonly type?: string;
  readonly properties?: Readonly<Record<string, Shape>>;
  readonly additionalProperties?: Shape | boolean;
  readonly required?: readonly string[];
  readonly items?: Shape;
  readonly anyOf?: readonly Shape[];
}

/**
 * Values of a schema's shape: objects and arrays are as it says, and so are numbers and booleans of the outermost one;
 * whatever else is at their ends, words of a closed set and numbers too, is hostile text, since readers of the bus check
 * no more than that outline. Further keys come along.
 */
export const hostileValue = (schema: z.ZodType): fc.Arbitrary<unknown> =>
  ofShape(z.toJSONSchema(schema, { unrepresentable: 'any', io: 'output' }) as Shape, true);

function ofShape(shape: Shape, outermost = false): fc.Arbitrary<unknown> {
  const { type, anyOf, items, properties } = shape;
  if (anyOf !== undefined) return fc.oneof(...anyOf.map((one) => ofShape(one, outermost)));
  if (type === 'object') return ofObject(shape, outermost);
  if (type === 'array') return fc.array(ofShape(items ?? {}), { minLength: 1, maxLength: 3 });
  return type === undefined && properties === undefined ? anything() : hostileText();
}

function ofObject(shape: Shape, outermost: boolean): fc.Arbitrary<unknown> {
  const { properties = {}, additionalProperties, required = [] } = shape;
  const known = Object.fromEntries(
    Object.entries(properties).map(([key, one]) => [
      key,
      outermost ? ofOutline(one) : ofShape(one),
    ]),
  );
  const more =
    typeof additionalProperties === 'object' ? ofShape(additionalProperties) : hostileText();
  const requiredKeys = required.filter((key) => Object.hasOwn(known, key));
  return fc
    .tuple(fc.record(known, { requiredKeys }), fc.dictionary(hostileText(), more, { maxKeys: 3 }))
    .map(([own, others]) => ({ ...others, ...own }));
}

function ofOutline(shape: Shape): fc.Arbitrary<unknown> {
  if (shape.type === 'boolean') return fc.boolean();
  return shape.type === 'number' || shape.type === 'integer' ? fc.integer() : ofShape(shape);
}
