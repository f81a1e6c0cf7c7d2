import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import type { VoltNetworkClient } from '#protocol/client.ts';
import { until } from './agent.ts';
import { addNamespace, removeNamespace } from './kernel.ts';

// Containers, each in a namespace that has its id for a name.

/** Whose agent is asked: a Stack is one. */
export interface Place {
  readonly client: VoltNetworkClient;
  readonly host: string;
}

/** Makes a namespace with the name `id`, and attaches it. */
export async function attachBox(
  { client, host }: Place,
  id: string,
  more: Partial<AttachRequest> & Pick<AttachRequest, 'network'>,
): Promise<Attachment> {
  addNamespace(id);
  const { attachment } = await client.attach(host, {
    id,
    workload: `container-${id}`,
    kind: 'container',
    netns: `/run/netns/${id}`,
    ...more,
  });
  return attachment;
}

/** Detaches it, waits until nothing of it is left on the host, and takes its namespace away. */
export async function detachBox({ client, host }: Place, id: string): Promise<void> {
  await client.detach(host, { id });
  await untilGone({ client, host }, id);
  removeNamespace(id);
}

/** Until nothing of an attachment is left on its host. */
export const untilGone = ({ client, host }: Place, id: string): Promise<void> =>
  until(`${id} is gone`, async () => {
    const error: unknown = await client.get(host, { id }).catch((cause: unknown) => cause);
    return error instanceof Error && 'code' in error && error.code === 'NOT_FOUND';
  });
