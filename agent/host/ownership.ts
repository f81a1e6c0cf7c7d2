import type { Link } from '#native/link.ts';

// Decides who owns a device of this host, by its alias, group and name. Nothing else in the agent decides this.

/**
 * Link group of every device that an agent made ("volt" in ASCII). The message that makes a device cannot contain an
 * alias. Until the alias is set, or if somebody has changed it, name and group together tell who owns the device.
 */
export const DEVICE_GROUP = 0x766f6c74;

/**
 * Every alias of ours begins like this: `volt:ID#GENERATION`, `volt:bridge:NETWORK GATEWAY …`, `volt:library:WORKLOAD`.
 */
const OURS = 'volt:';
const BRIDGE = `${OURS}bridge:`;

interface Owner {
  readonly id: string;
  readonly generation: number;
}

type Marks = Pick<Link, 'alias' | 'group'>;
type Named = Marks & Pick<Link, 'index' | 'name'>;

/** The alias of every object that belongs to an attachment, on the host and in a namespace. */
export const deviceTag = ({ id, generation }: Owner): string => `${OURS}${id}#${generation}`;

/** The attachment that an alias names, of whatever generation; undefined for any other alias. */
export const taggedId = (alias: string | undefined): string | undefined =>
  /^volt:(.+)#\d+$/.exec(alias ?? '')?.[1];

/** True for an alias of any generation of this attachment. */
export const isTagOf = (alias: string | undefined, id: string): boolean =>
  alias?.startsWith(`${OURS}${id}#`) ?? false;

/**
 * Alias of a device that a program made with the library. It does not end in a generation, so no agent takes it for its
 * own.
 */
export const libraryTag = (workload: string): string => `${OURS}library:${workload}`;

/** True for a device that carries an attachment's alias of this very generation. */
export const isTagged = ({ alias }: Pick<Marks, 'alias'>, owner: Owner): boolean =>
  alias === deviceTag(owner);

/** True for a device that an agent made, an attachment's or a bridge. */
export const isMadeByAgent = ({ group }: Pick<Marks, 'group'>): boolean => group === DEVICE_GROUP;

/** True for a device that an agent made and that has no alias of ours: not yet, or not any more. */
const isUntagged = ({ alias, group }: Marks): boolean =>
  group === DEVICE_GROUP && alias?.startsWith(OURS) !== true;

/**
 * True for the device of an attachment. The alias decides, since the index may have been given to another device. If
 * somebody has removed or replaced the alias, even by that of another attachment, index, name and group decide together.
 */
export function isDeviceOf(
  owner: Owner & { readonly device: Pick<Link, 'name'> & { readonly ifindex: number } },
  link: Named,
): boolean {
  if (link.index !== owner.device.ifindex) return false;
  return isTagged(link, owner) || (isMadeByAgent(link) && link.name === owner.device.name);
}

/**
 * For a device that has the name of an attachment's open intent: true if alias and group say that an agent made it, and
 * not for another attachment.
 */
export const isMadeFor = (id: string, link: Marks): boolean =>
  isUntagged(link) || isTagOf(link.alias, id);

/**
 * The alias for a device that is put away. A device without the alias of an attachment gets its owner's, so that the
 * next agent recognizes it.
 */
export const tagPutAway = ({ alias }: Pick<Marks, 'alias'>, owner: Owner): string =>
  alias !== undefined && taggedId(alias) !== undefined ? alias : deviceTag(owner);

/** The name of a device that was taken out of use and waits for its deletion. */
export const putAwayName = ({ index }: Pick<Link, 'index'>): string => `vdel${index}`;
const PUT_AWAY = /^vdel\d+$/;

/** True if the device still has the alias that was seen. Its index and name may have been given to another device. */
export const isStill = (
  seen: { readonly alias: string | undefined },
  link: Pick<Marks, 'alias'>,
): boolean => seen.alias === link.alias;

/**
 * The contents of the alias of a bridge that an agent made: its network, and the gateways that the agent may have given
 * it.
 */
export interface BridgeTag {
  readonly network: string;
  readonly gateways: readonly string[];
}

export const bridgeTag = ({ network, gateways }: BridgeTag): string =>
  [`${BRIDGE}${network}`, ...new Set(gateways)].join(' ');

/** Undefined for the alias of anything else. */
export function bridgeTagOf({ alias }: Pick<Marks, 'alias'>): BridgeTag | undefined {
  if (alias?.startsWith(BRIDGE) !== true) return undefined;
  const [network = '', ...gateways] = alias.slice(BRIDGE.length).split(' ');
  return { network, gateways };
}

/**
 * True for a bridge that an agent made for this network, finished or not: it has two of the three marks that the agent
 * gave it, alias, group and MAC. Every other bridge is adopted.
 */
export function isBridgeOf(
  link: Marks & { readonly mac?: { toString(): string } },
  { network, mac }: { readonly network: string; readonly mac: string },
): boolean {
  const tag = bridgeTagOf(link);
  if (tag !== undefined && tag.network !== network) return false;
  const marks = [tag !== undefined, isMadeByAgent(link), link.mac?.toString() === mac];
  return marks.filter(Boolean).length >= 2;
}

/** True for a device that has an alias, but not one of this attachment. */
export const isTaggedByAnother = ({ alias }: Pick<Marks, 'alias'>, id: string): boolean =>
  alias !== undefined && !isTagOf(alias, id);

/** The attachment that a device belongs to, as far as its record says. */
export interface Holder {
  /** Index of the device on the host, and the name of its IFB (`beside`); undefined if it has no device on the host. */
  readonly device?: { readonly ifindex: number; readonly beside: string } | undefined;
  readonly deviceName: string;
}

/**
 * True for a device of ours that belongs to no attachment. `holder`: the attachment that its tag names, if there is
 * one. `named`: a record has the name of the device; then it is that record's, whatever somebody has done to its tag.
 */
export function isStray(
  link: Named & Pick<Link, 'kind'>,
  holder: Holder | undefined,
  named: boolean,
): boolean {
  if (named || !isOurs(link)) return false;
  return taggedId(link.alias) === undefined || holder === undefined || isAnother(link, holder);
}

/**
 * True for a device that an agent made for an attachment: it is in our group, and has an attachment's tag or, if
 * somebody has removed that, no alias. If an agent died while it deleted a device, the device is in another group.
 */
function isOurs({ name, kind, alias, group }: Named & Pick<Link, 'kind'>): boolean {
  // Hardware (no `kind`) is never deleted. A bridge without an alias is one that is still being made.
  if (kind === undefined || (alias === undefined && kind === 'bridge')) return false;
  if (alias !== undefined && taggedId(alias) === undefined) return false;
  return group === DEVICE_GROUP || (group > DEVICE_GROUP && PUT_AWAY.test(name));
}

/** True for a device that has the tag of a record, but is neither the device of the record nor its IFB. */
function isAnother({ index, name }: Named, { device, deviceName }: Holder): boolean {
  if (device === undefined) return false;
  return index !== device.ifindex && name !== deviceName && name !== device.beside;
}
