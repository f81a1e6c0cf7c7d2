import { AckPolicy, type ConsumerConfig, RetentionPolicy, type StreamConfig } from 'nats';

// Why a stream or consumer that somebody else has made cannot serve, in words; undefined if it can. Pure: the caller
// decides what follows.

/** For a stream in which messages on `needed` should be stored. */
function streamFlaw(found: StreamConfig, needed: string): string | undefined {
  const { name } = found;
  if (found.mirror !== undefined)
    return `stream ${name} is a mirror of another, and stores nothing`;
  if (found.sealed) return `stream ${name} is sealed, and stores nothing`;
  if (found.no_ack) return `stream ${name} has no_ack, and never says that it has stored something`;
  if (areCovered(found, needed)) return undefined;
  const subjects = (found.subjects ?? []).join(', ');
  return `stream ${name} takes ${subjects === '' ? 'no subjects' : subjects}, not ${needed}`;
}

export function eventStreamFlaw(found: StreamConfig, needed: string): string | undefined {
  const flaw = streamFlaw(found, needed);
  if (flaw !== undefined || found.retention !== RetentionPolicy.Workqueue) return flaw;
  return `stream ${found.name} has retention workqueue, which gives each event to one reader alone`;
}

export function jobStreamFlaw(found: StreamConfig, needed: string): string | undefined {
  const flaw = streamFlaw(found, needed);
  if (flaw !== undefined || found.retention === RetentionPolicy.Workqueue) return flaw;
  const what =
    found.retention === RetentionPolicy.Interest
      ? 'drops jobs of hosts that have no consumer yet'
      : 'keeps jobs that are done, which would run again';
  return `stream ${found.name} has retention ${found.retention}, not workqueue, and ${what}`;
}

/** For the consumer that should deliver the jobs on `filter`. */
export function consumerFlaw(found: ConsumerConfig, filter: string): string | undefined {
  const name = found.durable_name ?? found.name ?? '';
  if (found.deliver_subject) return `consumer ${name} is a push consumer: jobs are asked for`;
  if (found.ack_policy !== AckPolicy.Explicit) {
    return `consumer ${name} has ack_policy ${found.ack_policy}, not explicit: jobs would be lost, or end together`;
  }
  const filters = found.filter_subjects ?? [found.filter_subject ?? ''];
  if (filters.length !== 1 || filters[0] !== filter) {
    return `consumer ${name} delivers ${filters.join(', ') || 'everything'}, not ${filter}`;
  }
  if (found.headers_only) return `consumer ${name} has headers_only: jobs would come empty`;
  if (found.max_deliver !== undefined && found.max_deliver > 0) {
    return `consumer ${name} has max_deliver ${found.max_deliver}, not -1: a job that has to wait would never come again`;
  }
  return undefined;
}

/** Whether one of the stream's subjects takes every subject that `needed` matches. */
export const areCovered = ({ subjects }: Pick<StreamConfig, 'subjects'>, needed: string): boolean =>
  (subjects ?? []).some((subject) => covers(subject.split('.'), needed.split('.')));

function covers(pattern: readonly string[], needed: readonly string[]): boolean {
  for (const [index, token] of pattern.entries()) {
    if (token === '>') return needed.length > index;
    const other = needed[index];
    if (other === undefined || other === '>') return false;
    if (token !== '*' && token !== other) return false;
  }
  return pattern.length === needed.length;
}
