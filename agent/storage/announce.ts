import type { EventLog } from './events.ts';
import type { Journal } from './journal.ts';

/**
 * Stores the `attached` event of a record that has not been announced yet, if there is one. Whatever else is told
 * of an attachment comes after it.
 */
export function announce(
  { journal, events }: { readonly journal: Journal; readonly events: EventLog },
  id: string,
): void {
  const record = journal.get(id);
  if (record?.announce === undefined || record.attachment === undefined) return;
  const { announce: untold, ...announced } = record;
  events.add({
    type: 'attached',
    network: record.attachment.network,
    subject: id,
    operation: 'attach',
    requestId: untold.requestId,
    trace: untold,
    body: record.attachment,
    durationMs: untold.durationMs,
  });
  journal.putAnyway(announced);
}
