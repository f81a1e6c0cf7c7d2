import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { eachMessage, type Framed, outcomeOf } from '#native/netlink-message.ts';
import { CodecError } from '#native/writer.ts';

/** Messages with what their bodies hold, copied: a body is a view of the datagram. */
function messagesIn(datagram: Buffer): (Omit<Framed, 'body'> & { body: string })[] {
  const messages: (Omit<Framed, 'body'> & { body: string })[] = [];
  eachMessage(datagram, ({ body, ...header }) => {
    messages.push({ ...header, body: body.toString('hex') });
  });
  return messages;
}

function framed({
  type,
  flags,
  sequence,
  port,
  body,
}: Omit<Framed, 'body'> & { body: Uint8Array }) {
  const header = Buffer.alloc(16);
  header.writeUInt32LE(16 + body.length, 0);
  header.writeUInt16LE(type, 4);
  header.writeUInt16LE(flags, 6);
  header.writeUInt32LE(sequence, 8);
  header.writeUInt32LE(port, 12);
  return Buffer.concat([header, body, Buffer.alloc((4 - (body.length % 4)) % 4)]);
}

describe('framing', () => {
  const message = fc.record({
    type: fc.integer({ min: 0, max: 0xffff }),
    flags: fc.integer({ min: 0, max: 0xffff }),
    sequence: fc.integer({ min: 0, max: 0xffff_ffff }),
    port: fc.integer({ min: 0, max: 0xffff_ffff }),
    body: fc.uint8Array({ maxLength: 50 }),
  });

  test('the messages of a datagram come in order, with what their headers say', () => {
    fc.assert(
      fc.property(fc.array(message, { maxLength: 5 }), (messages) => {
        const expected = messages.map((one) => ({
          ...one,
          body: Buffer.from(one.body).toString('hex'),
        }));
        expect(messagesIn(Buffer.concat(messages.map(framed)))).toEqual(expected);
      }),
    );
  });

  test('any bytes are read or refused', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 100 }), (some) => {
        try {
          eachMessage(Buffer.from(some), (one) => outcomeOf(one));
        } catch (error) {
          expect(error).toBeInstanceOf(CodecError);
        }
      }),
      { numRuns: 2_000 },
    );
  });

  test.each([
    ['shorter than a header', 15],
    ['longer than the datagram', 21],
  ])('a length %s is refused, not skipped: its answer would be waited for', (_what, length) => {
    const datagram = framed({ type: 2, flags: 0, sequence: 1, port: 0, body: Buffer.alloc(4) });
    datagram.writeUInt32LE(length, 0);
    expect(() => messagesIn(datagram)).toThrow(CodecError);
  });
});

describe('outcomes', () => {
  const NLM_F_CAPPED = 0x100;
  const NLM_F_ACK_TLVS = 0x200;
  const outcome = (flags: number, hex: string) =>
    outcomeOf({
      type: 2,
      flags,
      sequence: 1,
      port: 0,
      body: Buffer.from(hex.replaceAll(' ', ''), 'hex'),
    });
  const request = '2000000010000500 01000000 00000000';
  // NLMSGERR_ATTR_MSG "no" and NLMSGERR_ATTR_OFFS 4
  const attributes = '07000100 6e6f0000 08000200 04000000';

  test.each([
    ['zero is success', 0, '00000000', { errno: 0 }],
    ['an errno without words', NLM_F_CAPPED, `efffffff ${request}`, { errno: 17 }],
    [
      'words behind the header of the request',
      NLM_F_CAPPED | NLM_F_ACK_TLVS,
      `eaffffff ${request} ${attributes}`,
      { errno: 22, kernelText: 'no' },
    ],
    [
      'words at the end of a dump, which repeats no request',
      NLM_F_ACK_TLVS,
      `eaffffff ${attributes}`,
      { errno: 22, kernelText: 'no' },
    ],
    [
      'words that are cut leave the errno',
      NLM_F_ACK_TLVS,
      'eaffffff 40000100 6e6f0000',
      { errno: 22 },
    ],
    ['a body of nothing, which ends a dump', 0, '', { errno: 0 }],
  ])('%s', (_what, flags, hex, expected) => {
    expect(outcome(flags, hex)).toEqual(expected);
  });
});
