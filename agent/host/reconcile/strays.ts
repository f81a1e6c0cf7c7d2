import type { AttachmentRecord } from '../../storage/journal.ts';
import { ifbName } from '../networks/bandwidth.ts';
import { DEVICE_GROUP, taggedId } from '../networks/network-type.ts';
import { isOnHost } from './differences.ts';
import type { SeenLink } from './observe.ts';

/**
 * True for a device of ours that no attachment has. `record` is that of its tag; `named`: a record has its name, which
 * tells whose it is where the tag is lost.
 */
export function isStray(
  link: SeenLink,
  record: AttachmentRecord | undefined,
  named: boolean,
): boolean {
  if (!isOurs(link)) return false;
  if (taggedId(link.alias) === undefined) return !named;
  return record === undefined || isAnother(link, record);
}

/**
 * True for a device that an agent made: tagged as an attachment's, or in our group and without any tag, which it loses
 * by somebody's hand. One whose deletion an agent's death has interrupted has another group by then.
 */
function isOurs({ name, kind, alias, group }: SeenLink): boolean {
  // Hardware is never deleted; a bridge without its tag is one that is still to be finished.
  if (kind === undefined || (alias === undefined && kind === 'bridge')) return false;
  if (alias !== undefined && taggedId(alias) === undefined) return false;
  return group === DEVICE_GROUP || (group > DEVICE_GROUP && PUT_AWAY.test(name));
}

/** The name of a device that was taken out of use (`putAway`). */
const PUT_AWAY = /^vdel\d+$/;

/** True for a device with the tag of a record that is neither its device nor what belongs to that. */
function isAnother(
  { index, name }: SeenLink,
  { attachment, state, deviceName }: AttachmentRecord,
): boolean {
  if (state !== 'attached' || attachment === undefined || !isOnHost(attachment)) return false;
  const { ifindex } = attachment.device;
  return index !== ifindex && name !== deviceName && name !== ifbName(ifindex);
}
