import type { Namespace } from '#native/namespace.ts';
import { Addresses } from '#native/address.ts';
import { Links } from '#native/link.ts';
import { NetlinkSocket, type Request } from '#native/netlink.ts';
import { NamespaceIds } from '#native/namespace-id.ts';
import { Neighbours } from '#native/neighbour.ts';
import { Routes } from '#native/route.ts';
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

  constructor(namespace?: Namespace) {
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

  [Symbol.dispose](): void {
    this.#socket[Symbol.dispose]();
  }
}
