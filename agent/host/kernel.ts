import type { Namespace } from '#native/namespace.ts';
import { Addresses } from '#native/address.ts';
import { Links } from '#native/link.ts';
import { NetlinkSocket, type Request } from '#native/netlink.ts';
import { Changes } from '#native/netlink-events.ts';
import { NamespaceIds } from '#native/namespace-id.ts';
import { Neighbours } from '#native/neighbour.ts';
import { Routes } from '#native/route.ts';
import { RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR } from '#native/rtnetlink.ts';
import { Traffic } from '#native/traffic.ts';

/** The kernel's network configuration in one namespace: one socket, and the verbs over it. */
export class Kernel implements Disposable {
  readonly links: Links;
  readonly addresses: Addresses;
  readonly routes: Routes;
  readonly traffic: Traffic;
  readonly neighbours: Neighbours;
  readonly namespaceIds: NamespaceIds;
  readonly #socket: NetlinkSocket;
  readonly #namespace: Namespace | undefined;
  #addressChanges: Changes | undefined;

  constructor(namespace?: Namespace) {
    this.#namespace = namespace;
    this.#socket = NetlinkSocket.open(namespace === undefined ? {} : { namespace });
    this.links = new Links(this.#socket);
    this.addresses = new Addresses(this.#socket);
    this.routes = new Routes(this.#socket);
    this.traffic = new Traffic(this.#socket);
    this.neighbours = new Neighbours(this.#socket);
    this.namespaceIds = new NamespaceIds(this.#socket);
  }

  /** Does several requests in one message to the kernel; throws the first error once all were tried. */
  batch(requests: readonly Request[]): void {
    this.#socket.batch(requests);
  }

  /** Whether an address was added, changed or removed since this was asked last; true the first time. */
  addressesChanged(): boolean {
    if (this.#addressChanges !== undefined) return this.#addressChanges.any();
    const groups = [RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR];
    this.#addressChanges = new Changes(groups, { namespace: this.#namespace });
    return true;
  }

  [Symbol.dispose](): void {
    this.#addressChanges?.[Symbol.dispose]();
    this.#socket[Symbol.dispose]();
  }
}
