import { byId, el, setRows, setText } from './dom.js';
import { age, count } from './format.js';
import { asOf, filterLink, setOptions } from './parts.js';

/** Ledger and hosts, as /api/hosts answers them. */
export function showHosts({ value, ...known }) {
  setText(byId('hosts-note'), asOf(known));
  if (value === null) return;
  const live = value.hosts.filter(({ state }) => state === 'live').length;
  const ledger = byId('tile-ledger');
  setText(ledger, String(value.state));
  ledger.dataset.state = value.state === 'armed' ? 'good' : 'bad';
  const tile = byId('tile-hosts');
  setText(tile, `${count(live)} of ${count(value.hosts.length)}`);
  tile.dataset.state = live === value.hosts.length ? 'good' : 'bad';
  setOptions(
    byId('filters').elements.host,
    value.hosts.map(({ host }) => host),
  );
  setRows(
    byId('hosts-rows'),
    value.hosts.map((one) => {
      const heard = one.seenAt === undefined ? 'never' : `${age(one.seenAt)} ago`;
      const cloned = (one.clones ?? []).length > 0;
      return {
        key: one.host,
        content: JSON.stringify([one.state, one.leases, heard, cloned]),
        make: () =>
          el(
            'tr',
            {},
            el('th', { scope: 'row' }, filterLink('host', one.host)),
            el(
              'td',
              {},
              el('span', { class: 'badge', 'data-type': one.state }, one.state),
              cloned ? ' copies of this machine are refused' : '',
            ),
            el('td', { class: 'number' }, count(one.leases)),
            el('td', { class: 'number' }, heard),
          ),
      };
    }),
  );
}
