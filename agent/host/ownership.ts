import type { Link } from '#native/link.ts';

// Whose a device of this host is: by its alias, its group and its name. Nothing else in the agent decides it.

/**
 * Link group of every device that an agent made ("volt" in ASCII). An alias cannot be given in the message that makes a
 * device; until it follows, and where somebody has changed it, name and group together tell whose the device is.
 */
export const DEVICE_GROUP = 0x766f6c74;

/** What every alias of ours begins with: `volt:ID#GENERATION`, `volt:bridge:NETWORK GATEWAY …`, `volt:library:WORKLOAD`. */
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

/** Alias of a device that a program made by way of the library. It ends in no generation: no agent takes it for its own. */
export const libraryTag = (workload: string): string => `${OURS}library:${workload}`;

/** True for a device that carries an attachment's alias of this very generation. */
export const isTagged = ({ alias }: Pick<Marks, 'alias'>, owner: Owner): boolean =>
  alias === deviceTag(owner);

/** True for a device that an agent made, an attachment's or a bridge. */
export const isMadeByAgent = ({ group }: Pick<Marks, 'group'>): boolean => group === DEVICE_GROUP;

/** True for a device that an agent made and that nothing names: not tagged yet, or no more. */
const isUntagged = ({ alias, group }: Marks): boolean =>
  group === DEVICE_GROUP && alias?.startsWith(OURS) !== true;

/**
 * True for the device of an attachment. The alias decides, since the index may have been given to another device. Where
 * somebody has taken the alias away or put another text there, index, name and group decide together.
 */
export function isDeviceOf(
  owner: Owner & { readonly device: Pick<Link, 'name'> & { readonly ifindex: number } },
  link: Named,
): boolean {
  if (link.index !== owner.device.ifindex) return false;
  return isTagged(link, owner) || (isUntagged(link) && link.name === owner.device.name);
}

/** True for a device that has the name of an attachment's open intent and was made for it, as far as its marks tell. */
export const isMadeFor = (id: string, link: Marks): boolean =>
  isUntagged(link) || isTagOf(link.alias, id);

/** The alias of a device that is put away: what carries no attachment's gets its own, so that the next agent knows it. */
export const tagPutAway = ({ alias }: Pick<Marks, 'alias'>, owner: Owner): string =>
  alias !== undefined && taggedId(alias) !== undefined ? alias : deviceTag(owner);

/** The name of a device that was taken out of use and waits for its deletion. */
export const putAwayName = ({ index }: Pick<Link, 'index'>): string => `vdel${index}`;
const PUT_AWAY = /^vdel\d+$/;

/** True while it is the same device, which nobody has tagged anew: an index and a name may be given to another. */
export const isStill = (
  seen: { readonly alias: string | undefined },
  link: Pick<Marks, 'alias'>,
): boolean => seen.alias === link.alias;

/** What the alias of a bridge that an agent made says: its network, and the gateways that it may have got of it. */
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

/** True for a device that somebody has tagged since as another's than this attachment's. */
export const isTaggedByAnother = ({ alias }: Pick<Marks, 'alias'>, id: string): boolean =>
  alias !== undefined && !isTagOf(alias, id);

/** What holds a device, as far as its record says. */
export interface Holder {
  /** Index of the device on the host, and the name of what belongs to it; undefined where nothing lies on the host. */
  readonly device?: { readonly ifindex: number; readonly beside: string } | undefined;
  readonly deviceName: string;
}

/**
 * True for a device of ours that no attachment has. `holder` is the one that its tag names, if there is one; `named`: a
 * record has its name, which tells whose it is where the tag is lost.
 */
export function isStray(
  link: Named & Pick<Link, 'kind'>,
  holder: Holder | undefined,
  named: boolean,
): boolean {
  if (!isOurs(link)) return false;
  if (taggedId(link.alias) === undefined) return !named;
  return holder === undefined || isAnother(link, holder);
}

/**
 * True for a device that an agent made: tagged as an attachment's, or in our group and without any tag, which it loses
 * by somebody's hand. A device whose deletion an agent's death has interrupted has another group by then.
 */
function isOurs({ name, kind, alias, group }: Named & Pick<Link, 'kind'>): boolean {
  // Hardware is never deleted; a bridge without its tag is one that is still to be finished.
  if (kind === undefined || (alias === undefined && kind === 'bridge')) return false;
  if (alias !== undefined && taggedId(alias) === undefined) return false;
  return group === DEVICE_GROUP || (group > DEVICE_GROUP && PUT_AWAY.test(name));
}

/** True for a device with the tag of a record that is neither its device nor what belongs to that. */
function isAnother({ index, name }: Named, { device, deviceName }: Holder): boolean {
  if (device === undefined) return false;
  return index !== device.ifindex && name !== deviceName && name !== device.beside;
}
