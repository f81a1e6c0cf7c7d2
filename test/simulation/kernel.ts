import { constants } from 'node:os';
import type { AttachRequest } from '#protocol/attachment.ts';
import type { Network } from '#protocol/network.ts';
import { KernelError } from '#native/errors.ts';
import type { Steps } from '#native/steps.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { AttachmentRecord } from '#agent/storage/journal.ts';
import {
  type CheckedAttach,
  describeBy,
  type NetworkType,
} from '#agent/host/networks/network-type.ts';
import { compare } from '#agent/host/comparator.ts';
import { describedDevice } from '#agent/host/description.ts';
import type { HostNetwork } from '#agent/host/networks/types.ts';
import type { ChangeHandlers } from '#agent/host/reconcile/host-devices.ts';
import { forwardingKey, type Observed, type SeenLink } from '#agent/host/reconcile/observe.ts';
import { type Clock, type Life, NEVER } from './clock.ts';
import { DEVICE_GROUP, deviceTag, isTagOf, taggedId } from '#agent/host/ownership.ts';

/** What may be wrong with a network type, to see that a simulation finds it. */
export type KernelMistake = 'no-detach';

export interface ModelLink extends SeenLink {
  readonly addresses: readonly string[];
}

/** The devices of one host, which outlive its agents and end with a boot, and a network type that makes them. */
export class ModelKernel {
  readonly links = new Map<number, ModelLink>();
  readonly #clock: Clock;
  readonly #mistake: KernelMistake | undefined;
  #index = 1;
  #watcher: { readonly life: Life; readonly handlers: ChangeHandlers } | undefined;
  /** So often a call is refused. */
  refusal = 0;

  constructor(clock: Clock, mistake?: KernelMistake) {
    this.#clock = clock;
    this.#mistake = mistake;
  }

  /** Somebody deletes a device, or sets it down. */
  disturb(index: number, how: 'delete' | 'down'): void {
    const link = this.links.get(index);
    if (link === undefined) return;
    if (how === 'delete') this.links.delete(index);
    else this.links.set(index, { ...link, up: false });
    const { watcher } = this;
    if (watcher === undefined) return;
    this.#clock.after(1, watcher.life, () => {
      watcher.handlers.onLink({ ...link, up: false }, how === 'delete');
    });
  }

  get watcher(): { readonly life: Life; readonly handlers: ChangeHandlers } | undefined {
    return this.#watcher;
  }

  open(life: Life): HostNetwork {
    const { links } = this;
    // Links are read one by one: requests come in between.
    const observe = function* (whole: boolean): Steps<Observed> {
      const seen = new Map<number, ModelLink>();
      for (const index of [...links.keys()]) {
        yield;
        const link = links.get(index);
        if (link !== undefined) seen.set(index, link);
      }
      return {
        whole,
        links: seen,
        names: new Map([...seen.values()].map((link) => [link.name, link])),
        addresses: new Map(),
        namespaces: new Map(),
        inside: new Map(),
        limits: new Map(),
        elsewhere: new Set(),
        redirects: new Map(),
        forwarding: new Set(
          [...seen.values()].map(({ index, mac = '' }) => forwardingKey({ ifindex: index, mac })),
        ),
      };
    };
    const networkTypes = { bridged: this.#networkType(life) };
    const describe = describeBy(networkTypes);
    return {
      networkTypes,
      attachments: {
        describe,
        compare: (record) => {
          const description = describe(record);
          if (description === undefined) throw new Error('nothing describes it');
          return compare(description, { links });
        },
        mend: ({ attachment }) => {
          const link = links.get(attachment.device?.ifindex ?? 0);
          this.#step(life, 'RTM_SETLINK', attachment.id);
          if (link === undefined) throw refusalOf('RTM_SETLINK', attachment.id, 'ENODEV');
          this.#set(life, link, { up: true, alias: deviceTag(attachment) });
        },
        update: () => {},
        hasLeftover: () => false,
        resume: () => {},
      },
      bridges: {
        names: [],
        problems: [],
        warningsOf: () => [],
        clean: () => [],
        revise: () => {},
        compare: function* () {
          yield;
          return [];
        },
        repair: () => {},
        disturbedBy: () => [],
        networksOn: () => [],
        networksForwarding: () => [],
      },
      ownAddresses: () => new Map(),
      dryRuns: { dryRun: async () => [], close: async () => {} },
      namespaces: {
        find: () => Promise.reject(new Error('no namespaces here')),
        hasLeft: () => Promise.resolve(false),
      },
      firewall: {
        start: () => {},
        restore: () => false,
        unload: () => {},
        onRestored: () => {},
        problem: undefined,
        [Symbol.dispose]: () => {},
      },
      forwarding: {
        start: () => {},
        switchOff: () => {},
        onSwitchedOff: () => {},
        [Symbol.dispose]: () => {},
      },
      devices: {
        observe: () => observe(true),
        lookUp: () => observe(false),
        watch: (handlers) => {
          this.#watcher = { life, handlers };
          return { [Symbol.dispose]: () => {} };
        },
        putForwarding: () => {},
        remove: async ({ index, alias }) => {
          if (!life.dead && this.links.get(index)?.alias === alias) this.links.delete(index);
        },
      },
      links: () => [...links.values()],
      taggedDevices: function* () {
        yield;
        return new Map(
          [...links.values()].flatMap(({ alias, name }) => {
            const id = taggedId(alias);
            return id === undefined ? [] : [[id, name] as const];
          }),
        );
      },
    };
  }

  #networkType(life: Life): NetworkType {
    return {
      check: (request, network, known) =>
        this.#check(life, { request, network, deviceName: known?.deviceName }),
      detach: (record) => this.#detach(life, record),
      describe: ({ attachment: { id, generation, device } }) =>
        device === null
          ? { id, generation }
          : {
              id,
              generation,
              device: describedDevice({ id, generation, device }, { settings: {}, limits: {} }),
            },
      filterOf: () => 'full',
      checkChange: () => {},
      setDown: (record) => {
        const link = this.#linkOf(record);
        if (link !== undefined) this.#set(life, link, { up: false });
      },
      claim: () => [],
    };
  }

  #check(
    life: Life,
    {
      request,
      network,
      deviceName,
    }: { request: AttachRequest; network: Network; deviceName: string | undefined },
  ): CheckedAttach {
    const name = deviceName ?? `tap-${request.id}`;
    const { mtu = 1_500 } = network;
    return {
      deviceName: name,
      prepare: () => this.#step(life, '/dev/net/tun', name),
      attach: (lease, undo) => this.#make(life, { name, mtu }, lease, undo),
      [Symbol.dispose]: () => {},
    };
  }

  #make(
    life: Life,
    { name, mtu }: { name: string; mtu: number },
    lease: Lease,
    undo: DisposableStack,
  ) {
    this.#step(life, 'RTM_NEWLINK', name);
    if ([...this.links.values()].some((link) => link.name === name)) {
      throw refusalOf('RTM_NEWLINK', name, 'EEXIST');
    }
    this.#index += 1;
    const index = this.#index;
    const { mac, addresses } = lease;
    const made = { index, name, mac, up: false, mtu, group: DEVICE_GROUP, kind: 'tun' };
    if (life.dead) throw refusalOf('RTM_NEWLINK', name, 'EINTR');
    this.links.set(index, { ...made, addresses });
    undo.defer(() => {
      if (!life.dead) this.links.delete(index);
    });
    this.#step(life, 'RTM_SETLINK', name);
    const tagged = { ...made, addresses, alias: deviceTag(lease), up: true };
    if (!life.dead) this.links.set(index, tagged);
    this.#step(life, 'TUNSETPERSIST', name);
    const device = { type: 'tap' as const, name, ifindex: index, mac, mtu };
    return { device, filter: 'full' as const };
  }

  #detach(life: Life, record: AttachmentRecord): { removed: Promise<void> } {
    if (life.dead) return { removed: NEVER };
    const link = this.#mistake === 'no-detach' ? undefined : this.#linkOf(record);
    if (link === undefined) return { removed: Promise.resolve() };
    const { id, generation = 0 } = record;
    const alias = link.alias ?? deviceTag({ id, generation });
    this.#set(life, link, { up: false, name: `vdel${link.index}`, alias });
    life.killPoint();
    const { chance } = this.#clock;
    const removed = new Promise<void>((resolve, reject) => {
      this.#clock.after(chance.between(0, 30), life, () => {
        if (chance.happens(this.refusal)) {
          reject(refusalOf('RTM_DELLINK', record.deviceName, 'EBUSY'));
          return;
        }
        this.links.delete(link.index);
        life.killPoint();
        resolve();
      });
    });
    return { removed };
  }

  /** As the network types find it: by index, else by name. */
  #linkOf({ id, deviceName, attachment }: AttachmentRecord): ModelLink | undefined {
    const known = this.links.get(attachment?.device?.ifindex ?? 0);
    if (attachment !== undefined && known?.alias === deviceTag(attachment)) return known;
    return [...this.links.values()].find(
      ({ alias, name, group }) =>
        name === deviceName &&
        (isTagOf(alias, id) || (alias === undefined && group === DEVICE_GROUP)),
    );
  }

  #set(life: Life, link: ModelLink, change: Partial<ModelLink>): void {
    if (!life.dead) this.links.set(link.index, { ...link, ...change });
  }

  /** A call: the agent may be killed before it, and the kernel may refuse it. */
  #step(life: Life, operation: string, subject: string): void {
    life.killPoint();
    if (life.dead) throw refusalOf(operation, subject, 'EINTR');
    if (this.#clock.chance.happens(this.refusal)) throw refusalOf(operation, subject, 'EBUSY');
  }
}

const refusalOf = (operation: string, subject: string, code: keyof typeof constants.errno) =>
  new KernelError({ operation, subject, errno: constants.errno[code] });
