import { expect, test } from 'vitest';
import { IpAddress } from '#protocol/address.ts';
import { type SetElement, setText, writeElements } from '#native/nftset.ts';
import { CodecError, Writer } from '#native/writer.ts';
import { GOLDEN_ELEMENTS } from './golden-elements.ts';

test.each(GOLDEN_ELEMENTS)('$declared is what nft is told', ({ declaration, declared }) => {
  expect(setText(declaration)).toBe(declared);
});

test('raw keys of the egress hook are those of the device that frames leave by', () => {
  expect(setText({ key: ['ifname', 'th,208,48'] }, { egress: true })).toBe(
    '{ typeof oifname . @th,208,48; }',
  );
  expect(setText({ key: ['ifname', 'ether_addr'] }, { egress: true })).toBe(
    '{ type ifname . ether_addr; }',
  );
});

test.each(GOLDEN_ELEMENTS)(
  '$text has the bytes that nft sends',
  ({ declaration, element, hex }) => {
    const writer = new Writer();
    writeElements(writer, declaration, [element]);
    expect(writer.bytes.toString('hex')).toBe(hex.join(''));
  },
);

test('a range to the last address has no end', () => {
  const writer = new Writer();
  const [key, end] = [[IpAddress.parse('255.0.0.0')], [IpAddress.parse('255.255.255.255')]];
  writeElements(writer, { key: ['ipv4_addr'], interval: true }, [{ key, end }]);
  // One element: NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE.
  expect(writer.bytes.toString('hex')).toBe('14000380100001800c00018008000100ff000000');
});

const pair = ['ifname', 'ipv4_addr'] as const;
const v4 = IpAddress.parse('10.0.0.1');
const BAD: readonly [what: string, element: SetElement][] = [
  ['a name of 16 bytes, which has no room for its end', { key: ['sixteen-letters!', v4] }],
  ['an address of the other family', { key: ['tap0', IpAddress.parse('::1')] }],
  ['too few values', { key: ['tap0'] }],
];
test.each(BAD)('%s is refused', (_what, element) => {
  expect(() => writeElements(new Writer(), { key: pair }, [element])).toThrow(CodecError);
});
