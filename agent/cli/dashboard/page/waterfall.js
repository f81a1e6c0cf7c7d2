import { el } from './dom.js';
import { duration } from './format.js';

/** A table of what took how long, with bars on one scale of time. Rows have `name`, `startMs`, `durationMs`, `depth`. */
export function bars(caption, rows) {
  const whole = Math.max(0.001, ...rows.map((row) => row.startMs + row.durationMs));
  return el(
    'table',
    { class: 'waterfall' },
    el('caption', {}, caption),
    el(
      'thead',
      { class: 'unseen' },
      el(
        'tr',
        {},
        el('th', { scope: 'col' }, 'Name'),
        el('th', { scope: 'col' }, 'Duration'),
        el('th', { scope: 'col' }, 'When'),
      ),
    ),
    el('tbody', {}, ...rows.map((row) => bar(row, whole))),
  );
}

function bar(
  { name, startMs, durationMs, depth, service = '', error = '', isFaint = false },
  whole,
) {
  const piece = el('span', { class: error === '' ? 'piece' : 'piece bad' });
  if (isFaint) piece.classList.add('faint');
  piece.style.insetInlineStart = `${(100 * startMs) / whole}%`;
  piece.style.inlineSize = `${Math.max(0.4, (100 * durationMs) / whole)}%`;
  const title = el('th', { scope: 'row', title: service === '' ? null : service }, name);
  title.style.paddingInlineStart = `${Math.min(depth, 12) * 0.75}rem`;
  if (error !== '') title.append(el('span', { class: 'under warning' }, error));
  return el(
    'tr',
    {},
    title,
    el('td', { class: 'number' }, duration(durationMs)),
    el(
      'td',
      { class: 'track' },
      piece,
      el('span', { class: 'unseen' }, `begins after ${duration(startMs)}`),
    ),
  );
}
