import { byId, el, setChildren, setText } from './dom.js';
import { clock, counted, duration } from './format.js';
import { attachmentHref } from './parts.js';

const SHOWN = 150;
const KEPT = 1_000;
const SAY_EVERY_MS = 5_000;
const OF_ATTACHMENTS = new Set(['attached', 'detached', 'updated', 'failed', 'repaired']);
const GRAVE = new Set(['failed', 'host-down', 'suspect', 'recovering']);

/** The list of events, newest first. */
export function eventList() {
  const list = byId('events-rows');
  const which = byId('events-which');
  const pause = byId('events-pause');
  /** Newest last. */
  let kept = [];
  let unsaid = [];
  let saying = 0;
  let drawing = 0;
  const isPaused = () => pause.getAttribute('aria-pressed') === 'true';

  pause.addEventListener('click', () => {
    pause.setAttribute('aria-pressed', String(!isPaused()));
    draw();
  });
  which.addEventListener('change', () => draw(true));

  /** Many events that come together are one change of the page. */
  const draw = (anew = false) => {
    if (drawing !== 0 || (isPaused() && !anew)) return;
    drawing = requestAnimationFrame(() => {
      drawing = 0;
      redraw();
    });
  };

  function redraw() {
    const shown = kept
      .filter(({ type }) => which.value === '' || type === which.value)
      .slice(-SHOWN);
    const there = new Map([...list.children].map((child) => [child.dataset.key, child]));
    const rows = shown.toReversed().map((event) => there.get(String(event.sequence)) ?? row(event));
    if (rows.length === 0)
      rows.push(el('li', { class: 'empty' }, 'Nothing in the last 15 minutes.'));
    setChildren(list, rows);
    const begin = Date.now() - 15 * 60_000;
    const failures = kept.filter(
      ({ type, time }) => type === 'failed' && Date.parse(time) >= begin,
    );
    const tile = byId('tile-failures');
    setText(tile, String(failures.length));
    tile.dataset.state = failures.length === 0 ? 'good' : 'bad';
  }

  /** Not each for itself: who listens to the page would hear nothing else. */
  function say() {
    if (saying !== 0 || isPaused()) return;
    saying = setTimeout(() => {
      saying = 0;
      const last = unsaid.at(-1);
      if (last === undefined) return;
      const more = unsaid.length === 1 ? '' : `${counted(unsaid.length, 'new event')}, the last: `;
      setText(byId('events-said'), `${more}${last.type} ${last.subject} on ${last.host}`);
      unsaid = [];
    }, SAY_EVERY_MS);
  }

  return {
    /** Those of before come together, and are not said. */
    add(events) {
      const newest = kept.at(-1)?.sequence ?? 0;
      const fresh = events.filter(({ sequence }) => sequence > newest);
      const isFirst = kept.length === 0;
      kept = [...kept, ...fresh].slice(-KEPT);
      if (!isFirst && fresh.length > 0) {
        unsaid = [...unsaid, ...fresh].slice(-KEPT);
        say();
      }
      draw();
      return fresh;
    },
  };
}

/** What became of it, in words: the error, the addresses, the reason. */
export function outcome({ type, code, message, reason, device, addresses, operation }) {
  if (type === 'failed') return `${operation} ${code}: ${message}`.trim();
  const parts = [device, ...addresses];
  if (reason !== '' && reason !== 'requested') parts.push(`(${reason})`);
  return parts.filter((part) => part !== '').join(' ');
}

export const badge = (type) =>
  el(
    'span',
    { class: 'badge', 'data-type': type, 'data-grave': GRAVE.has(type) ? '' : null },
    type,
  );

function row(event) {
  const { sequence, type, host, network, subject, time, phases } = event;
  const isOfAttachment = OF_ATTACHMENTS.has(type) && network !== '-';
  const took = phases.reduce((sum, { phase, ms }) => (phase === 'publish' ? sum : sum + ms), 0);
  const more = outcome(event);
  return el(
    'li',
    { 'data-key': sequence },
    el('time', { datetime: time }, clock(time)),
    badge(type),
    el(
      'span',
      { class: 'subject' },
      isOfAttachment
        ? el('a', { href: attachmentHref({ host, network, id: subject }) }, subject)
        : subject,
    ),
    el('span', { class: 'took' }, took > 0 ? duration(took) : ''),
    el(
      'span',
      { class: 'where' },
      [host, network].filter((one) => one !== '-' && one !== subject).join(' · '),
      more === '' ? '' : ` · ${more}`,
    ),
  );
}
