import type { FleetListAnswer, FleetListRequest } from '#protocol/attachment.ts';
import type { HostClient } from './local-client.ts';

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
