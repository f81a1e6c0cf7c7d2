import { byId, el, setRows, setText } from './dom.js';
import { count } from './format.js';
import { asOf, filterLink, setOptions } from './parts.js';

const PARTS = ['used', 'reserved', 'cooling', 'free'];

/** Networks and how much of their pools is taken, as /api/networks answers them. */
export function showNetworks({ value, ...known }) {
  setText(byId('networks-note'), asOf(known));
  if (value === null) return;
  setText(byId('tile-networks'), count(value.length));
  setOptions(
    byId('filters').elements.network,
    value.map(({ network }) => network),
  );
  setRows(
    byId('networks-rows'),
    value.map((one) => ({
      key: one.network,
      content: JSON.stringify(one),
      make: () =>
        el(
          'tr',
          {},
          el(
            'th',
            { scope: 'row' },
            filterLink('network', one.network),
            el('span', { class: 'under' }, [one.type, ...one.subnets].join(' · ')),
          ),
          el('td', {}, ...pool(one.usage)),
        ),
    })),
  );
}

function pool(usage) {
  if (usage === null) return [el('span', { class: 'note' }, 'not known')];
  const amounts = PARTS.map((part) => [part, Math.max(0, Number(usage[part]) || 0)]);
  const whole = amounts.reduce((sum, [, amount]) => sum + amount, 0) || 1;
  const share = usage.size > 0 ? usage.used / usage.size : 0;
  const bar = el('div', { class: 'pool', 'aria-hidden': 'true' });
  for (const [part, amount] of amounts) {
    if (amount === 0) continue;
    const piece = el('span', { class: part });
    // The policy of the page forbids style attributes, not this.
    piece.style.flexGrow = String(amount / whole);
    bar.append(piece);
  }
  const texts = amounts
    .filter(([part, amount]) => amount > 0 || part === 'used' || part === 'free')
    .map(([part, amount]) => `${count(amount)} ${part}`);
  if (usage.suspect > 0) texts.push(`${count(usage.suspect)} suspect`);
  const full = usage.free === 0 ? 'full' : share >= 0.9 ? 'nearly full' : '';
  return [
    bar,
    el(
      'p',
      { class: 'amounts' },
      texts.join(' · '),
      full === '' ? null : el('strong', { class: 'warning' }, ` · ${full}`),
    ),
  ];
}
