import { createSocket } from 'node:dgram';
import { MacAddress } from '#protocol/address.ts';
import type { Attachment } from '#protocol/attachment.ts';
import { until } from './agent.ts';
import { arp, BROADCAST, ethernet, ETHERTYPE } from './frames.ts';
import { ip, only } from './kernel.ts';
import { markOf, type Station } from './packets.ts';
import type { RawPort } from './raw-port.ts';

// Who hears a frame. That somebody does not is known when they have heard one that was sent later.

/** By who heard it. */
export type Heard = Readonly<Record<string, readonly Buffer[]>>;

/** What all of them hear from now on, until each has heard enough. */
export async function heardUntil(
  hearers: Readonly<Record<string, RawPort>>,
  enough: (frames: readonly Buffer[]) => boolean,
): Promise<Heard> {
  const heard: Record<string, Buffer[]> = {};
  await until('all have heard it', () => {
    for (const [who, port] of Object.entries(hearers)) {
      heard[who] = [...(heard[who] ?? []), ...port.received()];
    }
    return Object.values(heard).every(enough);
  });
  return heard;
}

/** What all of them hear until one more frame of a station, sent now, which everybody may send to all. */
export function heardAfter(
  hearers: Readonly<Record<string, RawPort>>,
  { port, station }: { readonly port: RawPort; readonly station: Station },
): Promise<Heard> {
  const request = whoHas(station, nextTarget());
  port.send(request);
  const mark = markOf(request);
  return heardUntil(hearers, (frames) => frames.some((frame) => frame.includes(mark)));
}

/** Each of the frames that somebody heard, wherever it was sent to: `uplink: frame 0`. */
export const whoHeard = (frames: readonly Buffer[], heard: Heard): string[] =>
  Object.entries(heard).flatMap(([who, all]) =>
    frames.flatMap((frame, index) =>
      all.some((one) => one.includes(markOf(frame))) ? [`${who}: frame ${index}`] : [],
    ),
  );

/** An ARP request to all. */
export function whoHas({ mac, ip4 }: Station, address: string): Buffer {
  const request = arp({ operation: 1, sender: { mac, ip: ip4 }, target: { ip: address } });
  return ethernet(BROADCAST, mac, ETHERTYPE.arp, request);
}

let targets = 0;
/** An address that nobody has asked for yet. */
function nextTarget(): string {
  targets += 1;
  return `198.18.${targets >> 8}.${targets & 0xff}`;
}

export function stationOf({ mac, addresses }: Pick<Attachment, 'mac' | 'addresses'>): Station {
  const [ip4 = '0.0.0.0', ip6 = '::'] = addresses.map(({ address }) => address.split('/')[0]);
  return { mac, ip4, ip6, linkLocal: linkLocalOf(mac) };
}

/** The host on a bridge of its own, with these addresses. */
export function gatewayOn(bridge: string, own: Pick<Station, 'ip4' | 'ip6'>): Station {
  const mac = String(only(ip('link', 'show', bridge))['address']);
  return { ...own, mac, linkLocal: linkLocalOf(mac) };
}

const linkLocalOf = (mac: string): string => MacAddress.parse(mac).linkLocal().toString();

export interface UdpListener extends Disposable {
  readonly port: number;
  /** What came, as text, in order. */
  readonly heard: readonly string[];
}

/** UDP of the host on `0.0.0.0` or `::`. */
export async function listenUdp(any: '0.0.0.0' | '::'): Promise<UdpListener> {
  const socket = createSocket(any === '::' ? 'udp6' : 'udp4');
  const heard: string[] = [];
  socket.on('message', (message) => heard.push(message.toString()));
  await new Promise<void>((resolve) => {
    socket.bind({ address: any }, resolve);
  });
  const { port } = socket.address();
  return { port, heard, [Symbol.dispose]: () => void socket.close() };
}
