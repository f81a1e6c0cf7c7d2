import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  decode,
  decodeAnswer,
  encode,
  encodeAnswer,
  encodePage,
  MAX_ANSWER_BYTES,
  MAX_DEPTH,
  MAX_PAYLOAD_BYTES,
} from '#protocol/envelope.ts';
import { thrownBy } from './thrown.ts';

const bytesOf = (hex: string): Uint8Array => Buffer.from(hex.replaceAll(' ', ''), 'hex');

const nestedArrays = (depth: number): Uint8Array =>
  Uint8Array.from([...Array.from({ length: depth }, () => 0x91), 0xc0]);

// Values as requests, answers and events have them; -0 and unsafe integers are not among them.
const plainText = fc.string({ unit: 'grapheme' });
const key = plainText.filter((text) => text !== '__proto__');
const leaf = fc.oneof(
  plainText,
  fc.boolean(),
  fc.maxSafeInteger(),
  fc.double({ noNaN: true }).map((number) => number + 0),
  fc.uint8Array({ maxLength: 300 }),
);
const { value: anyValue } = fc.letrec((tie) => ({
  value: fc.oneof(
    { depthSize: 'small', withCrossShrink: true, maxDepth: MAX_DEPTH },
    leaf,
    fc.array(tie('value'), { maxLength: 20 }),
    fc.dictionary(key, tie('value'), { maxKeys: 20, noNullPrototype: false }),
  ),
}));

// Texts of this many bytes, their headers of three and five included.
const request = (bytes: number): string => 'x'.repeat(bytes - 3);
const answer = (bytes: number): string => 'x'.repeat(bytes - 5);

describe('round trip', () => {
  test('what is encoded is decoded, as the same value', () => {
    fc.assert(
      fc.property(anyValue, (value) => {
        // toEqual, since decoded maps have no prototype.
        expect(decodeAnswer(encodeAnswer(value))).toEqual(value);
        expect(decode(encode(value))).toEqual(value);
      }),
    );
  });

  test('sizes around each change of format survive', () => {
    for (const length of [0, 15, 16, 31, 32, 255, 256, 257]) {
      const value = {
        array: Array.from({ length }, (_, index) => index),
        map: Object.fromEntries(Array.from({ length }, (_, index) => [`k${index}`, 0 - index])),
        text: 'ä'.repeat(length),
        bytes: new Uint8Array(length),
      };
      expect(decode(encode(value))).toEqual(value);
    }
    const numbers = [127, 128, 255, 256, 65_535, 65_536, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1];
    const all = numbers.flatMap((number) => [number, 0 - number, number + 0.5]);
    expect(decode(encode(all))).toEqual(all);
  });

  test('keys whose value is undefined are left out', () => {
    expect(decode(encode({ id: 'a', mtu: undefined }))).toEqual({ id: 'a' });
    expect(Object.keys(Object(decode(encode({ mtu: undefined }))))).toEqual([]);
  });
});

describe('decode', () => {
  test('nil is absent in a request, in maps within maps too, and stays null in an answer', () => {
    const bytes = bytesOf('82 a1 61 c0 a1 62 81 a1 63 c0'); // {"a": nil, "b": {"c": nil}}
    expect(decode(bytes)).toEqual({ b: {} });
    expect(Object.keys(Object(decode(bytes)))).toEqual(['b']);
    expect(decodeAnswer(bytes)).toEqual({ a: null, b: { c: null } });
  });

  test('maps have no prototype, so that no key is found that was not sent', () => {
    const decoded = decode(encode({ inner: { constructor: 'x' } }));
    expect(Object.getPrototypeOf(decoded)).toBeNull();
    expect('toString' in Object(decoded)).toBe(false);
    const [inner] = Object.values(Object(decoded));
    expect(Object.entries(Object(inner))).toEqual([['constructor', 'x']]);
  });

  test('floats that are integers are integers', () => {
    expect(decode(bytesOf('cb 40 9f 40 00 00 00 00 00'))).toBe(2000);
    expect(decode(bytesOf('ca 44 fa 00 00'))).toBe(2000);
  });

  test('a view into a larger buffer is read within its bounds', () => {
    const around = Uint8Array.from([0xff, ...encode({ id: 'a' }), 0xff]);
    expect(decode(around.subarray(1, -1))).toEqual({ id: 'a' });
  });

  test.for([
    ['nothing', ''],
    ['the byte that begins no value', 'c1'],
    ['a map with too few values', '82 a1 61 01'],
    ['a map that ends before its value', '81 a1 61'],
    ['an array that ends', '93 01 02'],
    ['text that ends', 'a5 61 62'],
    ['a length that ends', 'da 00'],
    ['a number that ends', 'cf 00 00 00'],
    ['bytes after the value', '80 00'],
    ['two values', '80 80'],
    ['a number as key', '81 01 a1 61'],
    ['nil as key', '81 c0 01'],
    ['an array as key', '81 90 01'],
    ['bytes as key', '81 c4 01 61 01'],
    ['a number as second key', '82 a1 61 01 02 03'],
    ['a timestamp', 'd6 ff 00 00 00 00'],
    ['a timestamp within', '81 a1 74 d7 ff 00 00 00 00 00 00 00 00'],
    ['an extension of one byte', 'd4 01 00'],
    ['a long extension', 'c7 03 05 01 02 03'],
    ['text that is not UTF-8', 'a2 c3 28'],
    ['an overlong slash', 'a2 c0 af'],
    ['half a surrogate pair', 'a3 ed a0 80'],
    ['a key that is not UTF-8', '81 a1 ff 01'],
    ['__proto__ as key', '81 a9 5f 5f 70 72 6f 74 6f 5f 5f 80'],
    ['__proto__ as a key within', '81 a1 61 81 a9 5f 5f 70 72 6f 74 6f 5f 5f c0'],
    ['JSON', '7b 22 69 64 22 3a 22 61 22 7d'],
    ['a text of 4 GiB', 'db ff ff ff ff 61'],
    ['bytes of 4 GiB', 'c6 ff ff ff ff 00'],
    ['an array of 2^32 - 1', 'dd ff ff ff ff 00'],
    ['a map of 2^32 - 1', 'df ff ff ff ff a1 61 00'],
    ['an array of 65,535 in four bytes', 'dc ff ff 00'],
  ] as const)('%s is INVALID_REQUEST', ([, hex]) => {
    expect(thrownBy(() => decode(bytesOf(hex))).code).toBe('INVALID_REQUEST');
    expect(thrownBy(() => decodeAnswer(bytesOf(hex))).code).toBe('INVALID_REQUEST');
  });

  test('levels are counted, the outermost included', () => {
    expect(decode(nestedArrays(MAX_DEPTH))).toEqual([[[[[[[[null]]]]]]]]);
    const deeper = thrownBy(() => decode(nestedArrays(MAX_DEPTH + 1)));
    expect([deeper.code, deeper.message]).toEqual([
      'INVALID_REQUEST',
      expect.stringContaining('nested deeper than 8'),
    ]);
  });

  test('sixty thousand levels are refused, without a stack of that height', () => {
    expect(thrownBy(() => decode(nestedArrays(60_000))).code).toBe('INVALID_REQUEST');
  });

  test('nested headers that claim much allocate nothing', () => {
    // Each claims 16,384 elements. A decoder that believes them allocates 131 kB for each.
    const headers = Array.from({ length: 20_000 }, () => [0xdc, 0x40, 0x00]).flat();
    const before = process.memoryUsage().rss;
    expect(thrownBy(() => decode(Uint8Array.from(headers))).code).toBe('INVALID_REQUEST');
    expect(process.memoryUsage().rss - before).toBeLessThan(64e6);
  });

  test('any bytes are a value or an INVALID_REQUEST', () => {
    // Every fourth byte or so is one that begins something with a length or an inside.
    const spicy = fc.constantFrom(0x81, 0x92, 0xa1, 0xc4, 0xc7, 0xd9, 0xdc, 0xdd, 0xde, 0xdf, 0xff);
    const bytes = fc
      .array(fc.oneof(fc.integer({ min: 0, max: 255 }), spicy), { maxLength: 200 })
      .map((numbers) => Uint8Array.from(numbers));
    fc.assert(
      fc.property(bytes, (input) => {
        let value: unknown;
        try {
          value = decodeAnswer(input);
        } catch (error) {
          value = error;
        }
        const isRefusal = value instanceof Error;
        expect(isRefusal ? value : { code: 'INVALID_REQUEST' }).toHaveProperty(
          'code',
          'INVALID_REQUEST',
        );
      }),
      { numRuns: 2_000 },
    );
  });

  test('a message cut anywhere is refused, and so is one with a byte more', () => {
    const whole = encode({ id: 'att-1', tap: { queues: 2 }, labels: { a: 'b' }, list: [1, 2, 3] });
    for (let length = 0; length < whole.length; length += 1) {
      expect(thrownBy(() => decode(whole.subarray(0, length))).code).toBe('INVALID_REQUEST');
    }
    expect(thrownBy(() => decode(Uint8Array.from([...whole, 0]))).code).toBe('INVALID_REQUEST');
  });
});

describe('limits of size', () => {
  test('a request of 64 KiB passes, one byte more is TOO_LARGE on both sides', () => {
    expect(decode(encode(request(MAX_PAYLOAD_BYTES)))).toHaveLength(MAX_PAYLOAD_BYTES - 3);
    const error = thrownBy(() => encode(request(MAX_PAYLOAD_BYTES + 1)));
    expect([error.code, error.details]).toEqual(['TOO_LARGE', { bytes: 65_537, limit: 65_536 }]);
    expect(thrownBy(() => decode(new Uint8Array(MAX_PAYLOAD_BYTES + 1))).code).toBe('TOO_LARGE');
  });

  test('an answer of 512 KiB passes, one byte more is TOO_LARGE on both sides', () => {
    expect(decodeAnswer(encodeAnswer(answer(MAX_ANSWER_BYTES)))).toHaveLength(524_283);
    expect(thrownBy(() => encodeAnswer(answer(MAX_ANSWER_BYTES + 1))).code).toBe('TOO_LARGE');
    const bytes = new Uint8Array(MAX_ANSWER_BYTES + 1);
    expect(thrownBy(() => decodeAnswer(bytes)).code).toBe('TOO_LARGE');
  });
});

describe('encode', () => {
  test.for([
    ['a Date', { at: new Date(0) }],
    ['a bigint', { size: 1n }],
    ['a Map', { map: new Map() }],
    ['an Error', new Error('no')],
    ['a function', { run: () => 0 }],
    ['nine levels', [[[[[[[[[0]]]]]]]]]],
  ] as const)('%s is refused: no receiver would take it', ([, value]) => {
    expect(() => encode(value)).toThrow(Error);
  });

  test('after a refusal the next message is whole', () => {
    expect(() => encode({ a: 1, b: new Date(0) })).toThrow(TypeError);
    expect(Buffer.from(encode({ a: 1 })).toString('hex')).toBe('81a16101');
  });
});

describe('a page', () => {
  test.each([
    ['no element', [], {}],
    ['some, and a cursor', [{ id: 'a' }, { id: 'b', deep: { list: [1, null] } }], { cursor: 'b' }],
    ['very many', Array.from({ length: 70_000 }, (_, n) => n % 100), { cursor: undefined }],
  ])('of %s is the answer that it would be in one piece', (_, elements, rest) => {
    const encoded = elements.map((one) => encodeAnswer(one));
    const { bytes } = encodePage('attachments', encoded, rest);
    const whole = decodeAnswer(encodeAnswer({ attachments: elements, ...rest }));
    expect(decodeAnswer(bytes)).toEqual(whole);
  });

  test('past 512 KiB is TOO_LARGE', () => {
    const large = encodeAnswer('x'.repeat(MAX_ANSWER_BYTES - 5));
    expect(thrownBy(() => encodePage('attachments', [large], {})).code).toBe('TOO_LARGE');
  });
});
