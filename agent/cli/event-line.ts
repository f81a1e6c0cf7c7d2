import type { VoltEvent } from '#protocol/client.ts';
import { type Line, marked, type Span } from './page.ts';
import { isRecord } from './settings.ts';

/** An event as it came: nothing is believed of its body. */
type Told = Omit<VoltEvent, 'type' | 'body'> & {
  readonly type: string;
  readonly body: Readonly<Record<string, unknown>>;
};

/** One event on one line: time, type, host, network, subject, and how long the operation took. */
export function eventLine(event: Told): Line {
  const { type, host, network, time, body } = event;
  const grave = type === 'failed' || type === 'host-down';
  const parts: Span[] = [
    marked('faint', time.slice(11, 23)),
    marked(grave ? 'bad' : 'strong', type.padEnd(15)),
    host.padEnd(8),
    network.padEnd(8),
    subjectText(event),
    durationText(body),
  ];
  return parts
    .filter((part) => part !== '')
    .flatMap((part, n) => (n === 0 ? [part] : ['  ', part]));
}

function subjectText({ subject, body }: Told): string {
  const { error, device, addresses, reason } = body;
  const parts = [subject];
  if (isRecord(error)) parts.push(`${textOf(error['code'])}: ${textOf(error['message'])}`);
  if (isRecord(device)) parts.push(textOf(device['name']));
  if (Array.isArray(addresses)) {
    for (const one of addresses) parts.push(isRecord(one) ? textOf(one['address']) : textOf(one));
  }
  if (typeof reason === 'string') parts.push(`(${reason})`);
  return parts.filter((part) => part !== '').join(' ');
}

function durationText(body: Told['body']): string {
  const { durationMs } = body;
  if (!isRecord(durationMs)) return '';
  return Object.entries(durationMs)
    .map(([phase, ms]) => `${phase} ${typeof ms === 'number' ? ms.toFixed(1) : '?'} ms`)
    .join(', ');
}

const textOf = (value: unknown): string => (typeof value === 'string' ? value : '');
