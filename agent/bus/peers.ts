import { setTimeout as sleep } from 'node:timers/promises';
import type { NatsConnection } from 'nats';
import { requestOnce, unguessableInbox } from '#protocol/inbox.ts';

// Questions to other agents. Whoever is asked learns the reply subject and may speak there. So each question has a
// reply subject of its own, apart from the inbox on which the server delivers jobs and confirms events: on that inbox
// no other agent may speak (`_INBOX.*.peer.*` in the accounts of deploy/nats/).

/** How long to wait for the first answer to `$SRV.INFO`, for the next one after each, and for all together. */
const SURVEY_FIRST_MS = 1_000;
const SURVEY_GAP_MS = 250;
const SURVEY_MS = 10_000;

const peerInbox = (inboxPrefix: string): string => unguessableInbox(`${inboxPrefix}.peer`);

/** The answer of whoever serves the subject. Rejects if nobody does, or not in time. */
export async function askPeer(
  connection: NatsConnection,
  question: { subject: string; payload: Uint8Array; timeoutMs: number; inboxPrefix: string },
): Promise<Uint8Array> {
  const { subject, payload, timeoutMs, inboxPrefix } = question;
  const reply = peerInbox(inboxPrefix);
  return (await requestOnce(connection, { subject, payload, reply, timeoutMs })).data;
}

/** The metadata of all instances of these services that answer `$SRV.INFO` in time. */
export async function surveyPeers(
  connection: NatsConnection,
  { services, inboxPrefix }: { services: readonly string[]; inboxPrefix: string },
): Promise<Readonly<Record<string, string>>[]> {
  const found: Readonly<Record<string, string>>[] = [];
  const reply = peerInbox(inboxPrefix);
  const began = performance.now();
  let until = began + SURVEY_FIRST_MS;
  const subscription = connection.subscribe(reply, {
    callback: (error, message) => {
      if (error !== null) return;
      const metadata = metadataIn(message.data);
      if (metadata === null) return;
      until = Math.min(performance.now() + SURVEY_GAP_MS, began + SURVEY_MS);
      found.push(metadata);
    },
  });
  try {
    for (const service of services) {
      connection.publish(`$SRV.INFO.${service}`, undefined, { reply });
    }
    while (performance.now() < until) await sleep(SURVEY_STEP_MS);
    return found;
  } finally {
    if (!subscription.isClosed()) subscription.unsubscribe();
  }
}

const SURVEY_STEP_MS = 25;

/** The `metadata` of an answer to `$SRV.INFO`; null for a payload that is no such answer. */
function metadataIn(payload: Uint8Array): Record<string, string> | null {
  try {
    const info: unknown = JSON.parse(new TextDecoder().decode(payload));
    if (typeof info !== 'object' || info === null || !('metadata' in info)) return null;
    const { metadata } = info;
    if (typeof metadata !== 'object' || metadata === null) return null;
    return Object.fromEntries(Object.entries(metadata).map(([key, value]) => [key, String(value)]));
  } catch {
    return null;
  }
}
