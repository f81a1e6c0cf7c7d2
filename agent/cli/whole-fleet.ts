import type { FleetAttachment, FleetListAnswer, FleetListRequest } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import type { HostClient } from './local-client.ts';

export type Labels = Readonly<Record<string, string>>;

/** An attachment of the fleet, with what only its own host knows. */
export type Labelled = FleetAttachment & { readonly labels?: Labels };

export interface LabelledFleet extends Omit<FleetListAnswer, 'attachments'> {
  readonly attachments: readonly Labelled[];
  /** Hosts that did not tell their labels, and why. */
  readonly silent: readonly { readonly host: string; readonly code: string }[];
}

const HOSTS_AT_ONCE = 16;

/** All pages of the attachments of the fleet, as one. */
export async function wholeFleet(
  client: HostClient,
  host: string,
  request: FleetListRequest,
): Promise<FleetListAnswer> {
  const attachments: FleetListAnswer['attachments'] = [];
  // A network may go on on the next page.
  const behind = new Map<string, FleetListAnswer['behind'][number]>();
  let cursor: string | undefined;
  do {
    const page = await client.listFleet(host, { ...request, cursor });
    attachments.push(...page.attachments);
    for (const one of page.behind) behind.set(one.network, one);
    ({ cursor } = page);
  } while (cursor !== undefined);
  return { attachments, behind: [...behind.values()] };
}

/**
 * Adds the labels of the attachments, asked of their hosts, some at a time: the ledger has none. With `wanted` leaves out
 * what does not have all of these, and what is on a host that does not answer.
 */
export async function labelled(
  client: HostClient,
  fleet: FleetListAnswer,
  wanted: Labels | undefined,
): Promise<LabelledFleet> {
  const hosts = [...new Set(fleet.attachments.map(({ host }) => host))];
  const labels = new Map<string, Labels>();
  const silent: { host: string; code: string }[] = [];
  const ask = async (host: string): Promise<void> => {
    try {
      const filter = wanted === undefined ? {} : { labels: { ...wanted } };
      for await (const one of client.listAll(host, filter)) {
        labels.set(placeOf({ host, id: one.id }), one.labels);
      }
    } catch (error) {
      if (!(error instanceof VoltError)) throw error;
      silent.push({ host, code: error.code });
    }
  };
  const left = hosts.values();
  const lane = async (): Promise<void> => {
    for (const host of left) await ask(host);
  };
  await Promise.all(Array.from({ length: HOSTS_AT_ONCE }, lane));
  const attachments = fleet.attachments.flatMap((one): Labelled[] => {
    const found = labels.get(placeOf(one));
    if (found === undefined) return wanted === undefined ? [one] : [];
    return [{ ...one, labels: found }];
  });
  silent.sort((a, b) => (a.host < b.host ? -1 : 1));
  return { ...fleet, attachments, silent };
}

const placeOf = ({ host, id }: { host: string; id: string }): string => `${host} ${id}`;
