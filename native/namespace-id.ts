import { isKernelError } from './errors.ts';
import type { Namespace } from './namespace.ts';
import type { NetlinkSocket, Request } from './netlink.ts';
import { NLM_F_CREATE, namespaceIdMessage, RTM_GETNSID, RTM_NEWNSID } from './rtnetlink.ts';

/** A number of the kernel's choice. */
const ANY = -1;

/**
 * The numbers by which one network namespace knows others (man 8 ip-netns, `list-id`). A namespace keeps its number for
 * as long as it lives, whoever holds it, by whichever path or by none; the kernel takes the number back when it ends, and
 * may give it to another. So a number proves that some namespace lives, and a device found by it which one that is.
 */
export class NamespaceIds {
  readonly #socket: NetlinkSocket;

  constructor(socket: NetlinkSocket) {
    this.#socket = socket;
  }

  /** Gives a namespace a number, unless it has one. */
  give(namespace: Namespace): void {
    try {
      this.#socket.request({
        ...namespaceIdRequest(RTM_NEWNSID, 'RTM_NEWNSID', 'namespace', {
          NETNSA_NSID: ANY,
          NETNSA_FD: namespace.fd,
        }),
        flags: NLM_F_CREATE,
      });
    } catch (error) {
      if (!isKernelError(error, 'EEXIST')) throw error;
    }
  }

  /** Whether a namespace has this number. It has none any more from the moment in which nobody holds it. */
  has(id: number): boolean {
    const request = namespaceIdRequest(RTM_GETNSID, 'RTM_GETNSID', `#${id}`, { NETNSA_NSID: id });
    return this.#socket.find(request, 'ENOENT', () => true) ?? false;
  }

  list(): number[] {
    const request = namespaceIdRequest(RTM_GETNSID, 'RTM_GETNSID', 'namespaces', {});
    return this.#socket
      .dump(request, ({ body }) => namespaceIdMessage.read(body).attributes.NETNSA_NSID)
      .filter((id) => id !== undefined);
  }
}

const namespaceIdRequest = (
  type: number,
  operation: string,
  subject: string,
  attributes: Parameters<typeof namespaceIdMessage.write>[2],
): Request => ({
  type,
  operation,
  subject,
  write: (writer) => namespaceIdMessage.write(writer, {}, attributes),
});
