import { byId, el, setRows, setText, svg } from './dom.js';
import { duration, minute } from './format.js';

const WIDTH = 360;
const HEIGHT = 118;
const LEFT = 46;
const TOP = 8;
const BOTTOM = 20;
const STEPS = [1, 2, 5];

/** A small chart for attaches and one for detaches, and the same as a table. */
export function showLatency(minutes) {
  const charts = [chart('Attach', 'attach', minutes), chart('Detach', 'detach', minutes)];
  byId('latency').replaceChildren(...charts);
  const last = minutes.findLast(({ attach }) => attach !== null)?.attach;
  setText(byId('tile-attach'), last === undefined ? '–' : duration(last.p99));
  setRows(
    byId('latency-rows'),
    minutes.toReversed().map(({ at, attach, detach }) => ({
      key: at,
      content: JSON.stringify([attach, detach]),
      make: () =>
        el(
          'tr',
          {},
          el('th', { scope: 'row' }, minute(at)),
          ...[attach?.p50, attach?.p99, detach?.p50, detach?.p99].map((ms) =>
            cell(ms === undefined ? '–' : duration(ms)),
          ),
        ),
    })),
  );
}

const cell = (text) => el('td', { class: 'number' }, text);

function chart(title, operation, minutes) {
  const values = minutes.map((one) => one[operation]);
  const most = ceiling(Math.max(1, ...values.map((one) => one?.p99 ?? 0)));
  const x = (place) => LEFT + ((WIDTH - LEFT - 8) * place) / Math.max(1, minutes.length - 1);
  const y = (ms) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - ms / most);
  const now = values.findLast((one) => one !== null);
  const total = values.reduce((sum, one) => sum + (one?.count ?? 0), 0);
  const said =
    now === undefined || now === null
      ? `${title}: none in the last 15 minutes`
      : `${title}: last p50 ${duration(now.p50)}, p99 ${duration(now.p99)}; ${total} in 15 minutes`;
  const picture = svg(
    'svg',
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': said, class: 'chart' },
    ...[0, most / 2, most].flatMap((ms) => [
      svg('line', { class: 'grid', x1: LEFT, x2: WIDTH - 8, y1: y(ms), y2: y(ms) }),
      svg('text', { x: LEFT - 6, y: y(ms) + 4, 'text-anchor': 'end' }, label(ms)),
    ]),
    ...[0, Math.floor(minutes.length / 2), minutes.length - 1].map((place) =>
      svg(
        'text',
        {
          x: x(place),
          y: HEIGHT - 4,
          'text-anchor': place === 0 ? 'start' : place === minutes.length - 1 ? 'end' : 'middle',
        },
        minute(minutes[place].at),
      ),
    ),
    ...['p99', 'p50'].flatMap((which) => line(values, which, x, y)),
  );
  return el(
    'figure',
    { class: 'latency' },
    el(
      'figcaption',
      {},
      el('strong', {}, title),
      el('span', { class: 'p50' }, `p50 ${now ? duration(now.p50) : '–'}`),
      el('span', { class: 'p99' }, `p99 ${now ? duration(now.p99) : '–'}`),
    ),
    picture,
  );
}

/** Minutes without a value are gaps; each minute with one has a point, so that one alone is seen too. */
function line(values, which, x, y) {
  let path = '';
  let isDown = false;
  const points = [];
  values.forEach((value, place) => {
    if (value === null) {
      isDown = false;
      return;
    }
    const [atX, atY] = [x(place).toFixed(1), y(value[which]).toFixed(1)];
    path += `${isDown ? 'L' : 'M'}${atX} ${atY}`;
    isDown = true;
    points.push(svg('circle', { class: which, cx: atX, cy: atY, r: which === 'p50' ? 2.4 : 2 }));
  });
  return path === '' ? [] : [svg('path', { class: which, d: path }), ...points];
}

/** The next of 1, 2, 5, 10, 20, 50, … */
function ceiling(ms) {
  const power = 10 ** Math.floor(Math.log10(ms));
  return power * (STEPS.find((step) => step * power >= ms) ?? 10);
}

const label = (ms) => (ms >= 1_000 ? `${ms / 1_000} s` : `${ms} ms`);
