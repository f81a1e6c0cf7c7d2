import { InterfaceAddress } from '#protocol/address.ts';
import { isKernelError } from './errors.ts';
import type { NetlinkSocket, Request } from './netlink.ts';
import type { Received } from './netlink-message.ts';
import {
  AF_INET,
  AF_INET6,
  AF_UNSPEC,
  addressMessage,
  IFA_F_NODAD,
  NLM_F_CREATE,
  NLM_F_EXCL,
  RTM_DELADDR,
  RTM_GETADDR,
  RTM_NEWADDR,
} from './rtnetlink.ts';
import type { Steps } from './steps.ts';

export interface AssignedAddress {
  readonly ifindex: number;
  readonly address: InterfaceAddress;
}

type NewAddress = AssignedAddress & {
  readonly noDad?: boolean;
  readonly metric?: number | undefined;
};

/** Addresses of the devices of one network namespace. */
export class Addresses {
  readonly #socket: NetlinkSocket;

  constructor(socket: NetlinkSocket) {
    this.#socket = socket;
  }

  /**
   * Adds an address; EEXIST when the device has it. `noDad`: an IPv6 address is usable at once, without the
   * one to three seconds of duplicate address detection; for addresses that a ledger has made unique. `metric` is that
   * of the route to the address's subnet, which the kernel adds.
   */
  add(added: NewAddress): void {
    this.#socket.request(this.addition(added));
  }

  /** The request of `add`, for a batch. */
  addition({ ifindex, address, noDad = false, metric }: NewAddress): Request {
    const flags = noDad && address.address.family === 6 ? IFA_F_NODAD : 0;
    return {
      ...addressRequest(RTM_NEWADDR, 'RTM_NEWADDR', { ifindex, address, metric }, flags),
      flags: NLM_F_CREATE | NLM_F_EXCL,
    };
  }

  /** Removes an address; EADDRNOTAVAIL when the device does not have it. */
  remove(assigned: AssignedAddress): void {
    this.#socket.request(addressRequest(RTM_DELADDR, 'RTM_DELADDR', assigned, 0));
  }

  /** How many IPv4 addresses there are, of all devices. Much cheaper than `list`. */
  count(): number {
    return this.#socket.addressCount();
  }

  /** All addresses, or those of one device. */
  list({ ifindex }: { ifindex?: number } = {}): AssignedAddress[] {
    return this.#socket.dump(listRequest({ ifindex }), parseAddress).filter((row) => row !== null);
  }

  /** Those of one device in the namespace of that number (`NamespaceIds`); none when either is not there. */
  listIn(namespaceId: number, ifindex: number): AssignedAddress[] {
    try {
      const request = listRequest({ ifindex, namespaceId });
      return this.#socket.dump(request, parseAddress).filter((row) => row !== null);
    } catch (error) {
      if (isKernelError(error, 'EINVAL', 'ENODEV')) return [];
      throw error;
    }
  }

  /** All addresses, with pauses (`NetlinkSocket.dumpSteps`). */
  *listSteps(): Steps<AssignedAddress[]> {
    const rows = yield* this.#socket.dumpSteps(listRequest(), parseAddress);
    return rows.filter((row) => row !== null);
  }
}

const listRequest = ({
  ifindex,
  namespaceId,
}: { ifindex?: number | undefined; namespaceId?: number } = {}): Request => ({
  type: RTM_GETADDR,
  operation: 'RTM_GETADDR',
  subject: ifindex === undefined ? 'addresses' : `#${ifindex}`,
  write: (writer) =>
    addressMessage.write(
      writer,
      { ifa_family: AF_UNSPEC, ...(ifindex !== undefined && { ifa_index: ifindex }) },
      { ...(namespaceId !== undefined && { IFA_TARGET_NETNSID: namespaceId }) },
    ),
});

function addressRequest(
  type: number,
  operation: string,
  { ifindex, address, metric }: NewAddress,
  flags: number,
): Request {
  const own = address.address;
  return {
    type,
    operation,
    subject: `${address.toString()} dev #${ifindex}`,
    write: (writer) =>
      addressMessage.write(
        writer,
        {
          ifa_family: own.family === 4 ? AF_INET : AF_INET6,
          ifa_prefixlen: address.prefixLength,
          ifa_flags: flags,
          ifa_index: ifindex,
        },
        {
          IFA_LOCAL: own,
          IFA_ADDRESS: own,
          ...(metric !== undefined && { IFA_RT_PRIORITY: metric }),
        },
      ),
  };
}

/** An address from the body of an RTM_NEWADDR message; null when it holds none. */
export function parseAddress({ body }: Received): AssignedAddress | null {
  const { header, attributes } = addressMessage.read(body);
  // On a point-to-point link IFA_ADDRESS is the other end. IFA_LOCAL, if it is given, is always our address.
  const address = attributes.IFA_LOCAL ?? attributes.IFA_ADDRESS;
  if (address === undefined || header.ifa_prefixlen > address.toBytes().length * 8) return null;
  return {
    ifindex: header.ifa_index,
    address: new InterfaceAddress(address, header.ifa_prefixlen),
  };
}
