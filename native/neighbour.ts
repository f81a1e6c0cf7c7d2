import type { IpAddress, MacAddress } from '#protocol/address.ts';
import type { NetlinkSocket, Request } from './netlink.ts';
import type { Received } from './netlink-message.ts';
import {
  AF_BRIDGE,
  AF_INET,
  AF_INET6,
  AF_UNSPEC,
  neighbourMessage,
  NLM_F_CREATE,
  NLM_F_REPLACE,
  NTF_MASTER,
  NUD_NOARP,
  NUD_PERMANENT,
  NUD_REACHABLE,
  RTM_DELNEIGH,
  RTM_GETNEIGH,
  RTM_NEWNEIGH,
} from './rtnetlink.ts';

/** An entry of the ARP or ND table. */
export interface Neighbour {
  readonly ifindex: number;
  readonly address: IpAddress;
  /** Absent while it is being resolved, or could not be. */
  readonly mac?: MacAddress;
}

/** An entry of a bridge's forwarding table: frames to `mac` leave by port `ifindex`. */
export interface ForwardingEntry {
  readonly ifindex: number;
  readonly mac: MacAddress;
  readonly master?: number;
}

type Parsed = Neighbour | (ForwardingEntry & { readonly address?: undefined });

/** Neighbour and forwarding tables of one network namespace. */
export class Neighbours {
  readonly #socket: NetlinkSocket;

  constructor(socket: NetlinkSocket) {
    this.#socket = socket;
  }

  /** Makes or replaces an entry, permanent unless told otherwise. */
  replace(entry: Neighbour & { readonly mac: MacAddress; readonly permanent?: boolean }): void {
    const { permanent = true } = entry;
    const state = permanent ? NUD_PERMANENT : NUD_REACHABLE;
    this.#socket.request({
      ...neighbourRequest(RTM_NEWNEIGH, 'RTM_NEWNEIGH', entry, state),
      flags: NLM_F_CREATE | NLM_F_REPLACE,
    });
  }

  /** Removes an entry; ENOENT when there is none. */
  remove(entry: Omit<Neighbour, 'mac'>): void {
    this.#socket.request(neighbourRequest(RTM_DELNEIGH, 'RTM_DELNEIGH', entry, 0));
  }

  list(): Neighbour[] {
    return this.#dump(AF_UNSPEC).filter((row): row is Neighbour => row.address !== undefined);
  }

  /** Makes or replaces a static entry of the bridge that the port belongs to. */
  replaceForwarding(entry: ForwardingEntry): void {
    this.#socket.request({
      ...forwardingRequest(RTM_NEWNEIGH, 'RTM_NEWNEIGH', entry),
      flags: NLM_F_CREATE | NLM_F_REPLACE,
    });
  }

  /** Removes an entry of the bridge that the port belongs to; ENOENT when there is none. */
  removeForwarding(entry: ForwardingEntry): void {
    this.#socket.request(forwardingRequest(RTM_DELNEIGH, 'RTM_DELNEIGH', entry));
  }

  listForwarding(): ForwardingEntry[] {
    return this.#dump(AF_BRIDGE).filter((row): row is ForwardingEntry => row.mac !== undefined);
  }

  #dump(family: number): Parsed[] {
    const rows = this.#socket.dump(
      {
        type: RTM_GETNEIGH,
        operation: 'RTM_GETNEIGH',
        subject: family === AF_BRIDGE ? 'forwarding' : 'neighbours',
        write: (writer) => neighbourMessage.write(writer, { ndm_family: family }, {}),
      },
      parseNeighbour,
    );
    return rows.filter((row) => row !== null);
  }
}

const neighbourRequest = (
  type: number,
  operation: string,
  { ifindex, address, mac }: Neighbour,
  state: number,
): Request => ({
  type,
  operation,
  subject: `${address.toString()} dev #${ifindex}`,
  write: (writer) =>
    neighbourMessage.write(
      writer,
      {
        ndm_family: address.family === 4 ? AF_INET : AF_INET6,
        ndm_ifindex: ifindex,
        ndm_state: state,
      },
      { NDA_DST: address, ...(mac !== undefined && { NDA_LLADDR: mac }) },
    ),
});

const forwardingRequest = (
  type: number,
  operation: string,
  { ifindex, mac }: ForwardingEntry,
): Request => ({
  type,
  operation,
  subject: `${mac.toString()} dev #${ifindex}`,
  write: (writer) =>
    neighbourMessage.write(
      writer,
      {
        ndm_family: AF_BRIDGE,
        ndm_ifindex: ifindex,
        ndm_state: NUD_NOARP | NUD_REACHABLE,
        ndm_flags: NTF_MASTER,
      },
      { NDA_LLADDR: mac },
    ),
});

/** An entry from the body of an RTM_NEWNEIGH message; null when it is neither of the two. */
export function parseNeighbour({ body }: Received): Parsed | null {
  const { header, attributes } = neighbourMessage.read(body);
  const { NDA_DST: address, NDA_LLADDR: mac, NDA_MASTER: master } = attributes;
  const ifindex = header.ndm_ifindex;
  if (header.ndm_family === AF_BRIDGE) {
    if (mac === undefined) return null;
    return { ifindex, mac, ...(master !== undefined && { master }) };
  }
  if (address === undefined) return null;
  return { ifindex, address, ...(mac !== undefined && { mac }) };
}
