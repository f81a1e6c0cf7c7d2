import type { VoltEvent } from '#protocol/client.ts';
import { NO_COLOURS, printable, type Style } from './output.ts';
import { isRecord } from './settings.ts';

/** One event on one line: time, type, host, network, what it is about, and how long it took. */
export function eventLine(event: VoltEvent, style: Style = NO_COLOURS): string {
  const { type, host, network, time, body } = event;
  const paint = type === 'failed' || type === 'host-down' ? style.bad : style.strong;
  return [
    style.faint(time.slice(11, 23)),
    paint(type.padEnd(15)),
    printable(host.padEnd(8)),
    printable(network.padEnd(8)),
    printable(subjectText(body)),
    durationText(body),
  ]
    .filter((part) => part !== '')
    .join('  ');
}

function subjectText(body: unknown): string {
  if (!isRecord(body)) return '';
  const { error, request, id, device, addresses } = body;
  if (isRecord(error)) {
    const about = isRecord(request) ? `${textOf(request['id'])}: ` : '';
    return `${about}${textOf(error['code'])} ${textOf(error['message'])}`;
  }
  const parts = [textOf(id ?? body['network'])];
  if (isRecord(device)) parts.push(textOf(device['name']));
  if (Array.isArray(addresses)) {
    for (const one of addresses) parts.push(isRecord(one) ? textOf(one['address']) : textOf(one));
  }
  if (isRecord(body['attachment'])) return subjectText(body['attachment']);
  return parts.filter((part) => part !== '').join(' ');
}

function durationText(body: unknown): string {
  if (!isRecord(body) || !isRecord(body['durationMs'])) return '';
  return Object.entries(body['durationMs'])
    .map(([phase, ms]) => `${phase} ${typeof ms === 'number' ? ms.toFixed(1) : '?'} ms`)
    .join(', ');
}

const textOf = (value: unknown): string => (typeof value === 'string' ? value : '');
