import { ask, repeated } from './ask.js';
import { byId, el, setRows, setText } from './dom.js';
import { age, count } from './format.js';
import { asOf, attachmentHref, setOptions } from './parts.js';

const ROWS = 25;
const EVERY_MS = 5_000;
const TYPING_MS = 200;

/**
 * The table of attachments with its filter. The filter is in the address, so that it can be kept and gone back to.
 * `guard` runs work and shows why it failed.
 */
export function attachmentsTable(guard) {
  const form = byId('filters');
  let offset = 0;
  let matching = 0;

  const query = () => Object.fromEntries(new FormData(form));
  const table = repeated(
    () =>
      guard(async () => {
        const asked = { ...query(), offset, limit: ROWS };
        const known = await ask('api/attachments', asked);
        // Somebody has typed on meanwhile.
        if (JSON.stringify({ ...query(), offset, limit: ROWS }) === JSON.stringify(asked))
          show(known);
      }),
    EVERY_MS,
  );

  function show({ value, ...known }) {
    if (value === null) {
      setText(byId('attachments-note'), asOf(known));
      return;
    }
    ({ matching } = value);
    if (offset > 0 && offset >= matching) {
      offset = Math.max(0, Math.floor((matching - 1) / ROWS) * ROWS);
      table.soon(0);
    }
    setText(byId('tile-attachments'), count(value.all));
    const found = matching === value.all ? '' : `${count(matching)} of ${count(value.all)} match`;
    setText(byId('attachments-note'), [found, asOf(known)].filter(Boolean).join('; '));
    byId('attachments-behind').replaceChildren(
      ...value.behind.map((one) =>
        el('li', {}, `Network ${one.network} as it was ${age(one.asOf)} ago: ${one.message}`),
      ),
    );
    showRows(value.rows);
    const last = Math.min(offset + ROWS, matching);
    const place =
      matching === 0 ? 'none' : `${count(offset + 1)}–${count(last)} of ${count(matching)}`;
    setText(byId('page-place'), place);
    byId('page-before').disabled = offset === 0;
    byId('page-after').disabled = last >= matching;
  }

  function turn(rows) {
    offset = Math.max(0, offset + rows);
    table.now();
  }
  byId('page-before').addEventListener('click', () => turn(-ROWS));
  byId('page-after').addEventListener('click', () => turn(ROWS));

  let typing = 0;
  const changed = () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      offset = 0;
      const given = new URLSearchParams(
        Object.entries(query()).filter(([, value]) => value !== ''),
      );
      history.replaceState(null, '', given.size === 0 ? '#/' : `#/?${given}`);
      table.now();
    }, TYPING_MS);
  };
  form.addEventListener('input', changed);
  // The fields are empty only after this.
  form.addEventListener('reset', () => setTimeout(changed));
  form.addEventListener('submit', (event) => event.preventDefault());

  return {
    /** As the address says. */
    filter(given) {
      offset = 0;
      for (const field of form.querySelectorAll('[name]')) {
        const value = given.get(field.name) ?? '';
        if (field.localName === 'select' && field.name !== 'kind' && value !== '') {
          const known = [...field.options].slice(1).map((option) => option.value);
          setOptions(field, [...new Set([...known, value])]);
        }
        field.value = value;
      }
      table.now();
    },
    soon: table.soon,
  };
}

function showRows(rows) {
  setRows(
    byId('attachments-rows'),
    rows.map((one) => {
      const addresses = one.addresses.map((address) => address.replace(/\/\d+$/, ''));
      const old = age(one.grantedAt);
      return {
        key: JSON.stringify([one.network, one.id]),
        content: JSON.stringify([one, old]),
        make: () =>
          el(
            'tr',
            {},
            el(
              'th',
              { scope: 'row' },
              el('a', { href: attachmentHref(one) }, one.id),
              one.workload === one.id ? null : el('span', { class: 'under' }, one.workload),
              el('span', { class: 'under narrow' }, addresses.join(' ')),
            ),
            el('td', { class: 'roomy' }, one.kind),
            el('td', {}, one.network),
            el('td', {}, one.host),
            el('td', { class: 'roomy code' }, addresses.join(' ')),
            el('td', { class: 'roomiest code' }, one.mac),
            el('td', { class: 'number roomy' }, old),
          ),
      };
    }),
  );
}
