import { InterfaceAddress } from '#protocol/address.ts';
import type { Attachment, Difference } from '#protocol/attachment.ts';
import type { Link } from '#native/link.ts';
import type { Steps } from '#native/steps.ts';
import { Kernel } from '../kernel.ts';
import { openIfThere } from './workload.ts';
import { isDeviceOf, taggedId } from '../ownership.ts';

/** Compares a device on the host, and a container's end where it lies in a namespace, with its attachment. */
export function observePort(kernel: Kernel, attachment: Attachment): Difference[] {
  const { id, device } = attachment;
  if (device === null) return [];
  const differences = new Differences(id);
  const link = kernel.links.get(device.ifindex);
  if (link === null || !isDeviceOf({ ...attachment, device }, link)) {
    return [{ id, what: 'device', expected: device.name, observed: null }];
  }
  differences.compare('device.name', device.name, link.name);
  compareLink(differences, 'device', device, link);
  const master = link.master === undefined ? null : kernel.links.get(link.master);
  differences.compare('device.bridge', device.bridge ?? null, master?.name ?? null);
  const { peer } = device;
  if (peer?.netns !== undefined) {
    observeInterface(differences, attachment, { ...peer, netns: peer.netns, what: 'device.peer' });
  }
  return differences.found;
}

/** Compares a device that lies in the workload's namespace, with nothing of it on the host, with its attachment. */
export function observeInside(attachment: Attachment): Difference[] {
  const { id, device, netns } = attachment;
  const differences = new Differences(id);
  if (device !== null && netns !== undefined) {
    observeInterface(differences, attachment, { ...device, netns, what: 'device' });
  }
  return differences.found;
}

/** Names of all devices of ours on the host, by attachment id, whether there is a record or not. */
export function* taggedDevices(): Steps<Map<string, string>> {
  // A socket of its own, since a dump that pauses keeps it.
  using kernel = new Kernel();
  const devices = new Map<string, string>();
  for (const { alias, name } of yield* kernel.links.listSteps()) {
    const id = taggedId(alias);
    if (id !== undefined) devices.set(id, name);
  }
  return devices;
}

class Differences {
  readonly found: Difference[] = [];
  readonly #id: string;

  constructor(id: string) {
    this.#id = id;
  }

  compare(what: string, expected: unknown, observed: unknown): void {
    if (expected !== observed) this.found.push({ id: this.#id, what, expected, observed });
  }
}

function compareLink(
  differences: Differences,
  what: string,
  expected: { readonly mac: string; readonly mtu: number },
  link: Link,
): void {
  differences.compare(`${what}.mac`, expected.mac, link.mac?.toString() ?? null);
  differences.compare(`${what}.mtu`, expected.mtu, link.mtu);
  differences.compare(`${what}.up`, true, link.up);
}

function observeInterface(
  differences: Differences,
  attachment: Attachment,
  own: {
    readonly what: string;
    readonly name: string;
    readonly mac: string;
    readonly netns: string;
  },
): void {
  const namespace = openIfThere(own.netns);
  if (namespace === null) {
    differences.compare('netns', own.netns, null);
    return;
  }
  using handle = namespace;
  using inside = new Kernel(handle);
  const link = inside.links.get(own.name);
  if (link === null) {
    differences.compare(own.what, own.name, null);
    return;
  }
  const mtu = attachment.device?.mtu ?? link.mtu;
  compareLink(differences, own.what, { mac: own.mac, mtu }, link);
  const held = new Set(
    inside.addresses.list({ ifindex: link.index }).map(({ address }) => address.toString()),
  );
  for (const { address } of attachment.addresses) {
    const wanted = InterfaceAddress.parse(address).toString();
    differences.compare('address', wanted, held.has(wanted) ? wanted : null);
  }
}
