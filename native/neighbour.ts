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
  NLM_F_EXCL,
  NLM_F_REPLACE,
  NTF_MASTER,
  NTF_STICKY,
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
  /** It does not age, and no frame from another port moves it. */
  readonly fixed?: boolean;
  /** The MAC of a port, or of the bridge: what is sent there goes to the host. */
  readonly local?: boolean;
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

  /** For a batch: a static entry for a MAC of which the bridge knows nothing; EEXIST where it does. */
  forwardingAddition(entry: ForwardingEntry): Request {
    return {
      ...forwardingRequest(RTM_NEWNEIGH, 'RTM_NEWNEIGH', entry),
      flags: NLM_F_CREATE | NLM_F_EXCL,
    };
  }

  /** Removes an entry of the bridge that the port belongs to; ENOENT when there is none. */
  removeForwarding(entry: ForwardingEntry): void {
    this.#socket.request(forwardingRequest(RTM_DELNEIGH, 'RTM_DELNEIGH', entry));
  }

  /** The entry for a MAC of a bridge, wherever it leads; null when there is none. */
  findForwarding({ master, mac }: { master: number; mac: MacAddress }): ForwardingEntry | null {
    const found = this.#socket.find(
      {
        type: RTM_GETNEIGH,
        operation: 'RTM_GETNEIGH',
        subject: `${mac.toString()} br #${master}`,
        write: (writer) =>
          neighbourMessage.write(
            writer,
            { ndm_family: AF_BRIDGE },
            { NDA_LLADDR: mac, NDA_MASTER: master },
          ),
      },
      'ENOENT',
      parseNeighbour,
    );
    return found?.address === undefined ? found : null;
  }

  /** Whether a device that is no bridge receives frames for a MAC beside its own: one of a macvlan on it, for one. */
  receives(ifindex: number, mac: MacAddress): boolean {
    const request = dumpRequest(AF_BRIDGE, ifindex);
    return this.#socket
      .dump(request, parseNeighbour)
      .some((row) => row?.address === undefined && row?.ifindex === ifindex && row.mac.equals(mac));
  }

  listForwarding(): ForwardingEntry[] {
    return this.#dump(AF_BRIDGE).filter(isForwarding);
  }

  #dump(family: number): Parsed[] {
    const rows = this.#socket.dump(dumpRequest(family), parseNeighbour);
    return rows.filter((row) => row !== null);
  }
}

const isForwarding = (row: Parsed): row is ForwardingEntry => row.address === undefined;

const dumpRequest = (family: number, ifindex = 0): Request => ({
  type: RTM_GETNEIGH,
  operation: 'RTM_GETNEIGH',
  subject: family === AF_BRIDGE ? 'forwarding' : 'neighbours',
  write: (writer) =>
    neighbourMessage.write(writer, { ndm_family: family, ndm_ifindex: ifindex }, {}),
});

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
  { ifindex, mac, fixed = false }: ForwardingEntry,
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
        ndm_flags: NTF_MASTER | (fixed ? NTF_STICKY : 0),
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
    const { ndm_state: state, ndm_flags: flags } = header;
    return {
      ifindex,
      mac,
      ...(master !== undefined && { master }),
      ...((state & NUD_NOARP) !== 0 && (flags & NTF_STICKY) !== 0 && { fixed: true }),
      ...((state & NUD_PERMANENT) !== 0 && { local: true }),
    };
  }
  if (address === undefined) return null;
  return { ifindex, address, ...(mac !== undefined && { mac }) };
}
