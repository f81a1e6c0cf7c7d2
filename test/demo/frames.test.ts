import { describe, expect, test } from 'vitest';
import {
  arpReply,
  arpRequest,
  echoReply,
  echoRequest,
  parseFrame,
  type Station,
} from '../../deploy/demo/frames.ts';

const vm: Station = {
  mac: Uint8Array.of(2, 0, 0, 0, 0, 1),
  address: Uint8Array.of(10, 42, 0, 10),
};
const peer: Station = {
  mac: Uint8Array.of(2, 0, 0, 0, 0, 2),
  address: Uint8Array.of(10, 42, 0, 20),
};
const echo = { identifier: 7, sequence: 1, payload: Buffer.from('odd') };

// Laid out by hand from RFC 826: Ethernet header, hardware and protocol types, sender, target.
const REQUEST_ARP =
  'ffffffffffff020000000002080600010800060400010200000000020a2a00140000000000000a2a000a';

describe('frames', () => {
  test('an ARP request is the bytes of RFC 826', () => {
    expect(arpRequest(peer, vm.address).toString('hex')).toBe(REQUEST_ARP);
  });

  test.each([
    ['arp-request', arpRequest(peer, vm.address)],
    ['arp-reply', arpReply(peer, vm)],
    ['echo-request', echoRequest(peer, vm, echo)],
    ['echo-reply', echoReply(peer, vm, echo)],
  ] as const)('%s survives the way', (kind, frame) => {
    const received = parseFrame(frame, vm);
    const from = { mac: Buffer.from(peer.mac), address: Buffer.from(peer.address) };
    expect(received).toEqual({ kind, from, ...(kind.startsWith('echo') && { echo }) });
  });

  test('what is for others, damaged or cut off is not answered', () => {
    const frame = echoRequest(peer, vm, echo);
    expect(parseFrame(frame, peer)).toBeUndefined();
    const damaged = Buffer.from(frame);
    damaged.writeUInt8(frame.readUInt8(40) ^ 1, 40);
    expect(parseFrame(damaged, vm)).toBeUndefined();
    for (const whole of [frame, arpRequest(peer, vm.address)]) {
      for (let length = 0; length < whole.length; length += 1) {
        expect(parseFrame(whole.subarray(0, length), vm)).toBeUndefined();
      }
    }
  });
});
