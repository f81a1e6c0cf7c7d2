import { type Figure, median, quantile, shown, type Table } from './figures.ts';

// Charts as SVG text: a bar to the median of each row, a line on to p95 and p99. The colours follow the reader's choice
// of light or dark, and the ground is the page's own.

const CHARACTER_WIDTH = 7.3;
const GAP = 8;
const BAR_WIDTH = 380;
const VALUE_WIDTH = 130;
const ROW_HEIGHT = 26;
const BAR_HEIGHT = 14;
const TOP = 34;
const BOTTOM = 22;
/** Of the largest p95, what fits: a p99 that is further out would leave nothing of the bars. */
const HEADROOM = 1.2;

const STYLE = `
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .head { font-weight: 600; }
  .small { font-size: 11px; fill: #57606a; }
  .bar { fill: #2f6f9f; }
  .tail { stroke: #8a5a00; stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .small { fill: #9198a1; }
    .bar { fill: #5aa2d6; }
    .tail { stroke: #e0a84b; }
  }
`;

/** The chart of what a table shows in its main unit; undefined where there is nothing to compare. */
export function chartOf({ title, shown: figures }: Table): string | undefined {
  const unit = figures[0]?.unit;
  const rows = figures.filter((figure) => figure.unit === unit && figure.values.length > 0);
  if (unit === undefined || rows.length < 2) return undefined;
  const limit = Math.max(...rows.map(({ values }) => quantile(values, 0.95))) * HEADROOM;
  if (!Number.isFinite(limit) || limit <= 0) return undefined;
  const longest = Math.max(...rows.map(({ name }) => name.length));
  const left = Math.ceil(longest * CHARACTER_WIDTH) + 2 * GAP;
  const width = left + BAR_WIDTH + VALUE_WIDTH;
  const height = TOP + rows.length * ROW_HEIGHT + BOTTOM;
  const place = (value: number): number => left + (Math.min(value, limit) / limit) * BAR_WIDTH;
  const withTails = rows.some(({ values }) => values.length > 1);
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img">`,
    `<title>${escaped(title)}</title>`,
    `<style>${STYLE}</style>`,
    `<text class="head" x="8" y="20">${escaped(`${title}, ${unit}`)}</text>`,
    ...rows.flatMap((figure, n) => rowOf(figure, TOP + n * ROW_HEIGHT, { left, limit, place })),
    ...(withTails
      ? [
          `<text class="small" x="8" y="${height - 6}">bar: median; marks: p95 and p99, which may be further out</text>`,
        ]
      : []),
    '</svg>',
    '',
  ].join('\n');
}

function rowOf(
  { name, values }: Figure,
  y: number,
  axis: { left: number; limit: number; place: (value: number) => number },
): string[] {
  const { left, limit, place } = axis;
  const middle = y + ROW_HEIGHT / 2;
  const top = middle - BAR_HEIGHT / 2;
  const end = place(median(values));
  const last = place(quantile(values, 0.99));
  const marks = [0.95, 0.99]
    .map((share) => quantile(values, share))
    .filter((value) => value <= limit)
    .map((value) => `M${place(value).toFixed(1)} ${top + 2}v${BAR_HEIGHT - 4}`);
  const tail = `M${end.toFixed(1)} ${middle}H${last.toFixed(1)}${marks.join('')}`;
  const bar = (end - left).toFixed(1);
  const text = (last + GAP).toFixed(1);
  return [
    `<text x="${left - GAP}" y="${middle + 4}" text-anchor="end">${escaped(name)}</text>`,
    `<rect class="bar" x="${left}" y="${top}" width="${bar}" height="${BAR_HEIGHT}" rx="2"/>`,
    ...(values.length < 2 ? [] : [`<path class="tail" d="${tail}"/>`]),
    `<text class="small" x="${text}" y="${middle + 4}">${shown(median(values))}</text>`,
  ];
}

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
};

const escaped = (text: string): string => text.replace(/[&<>"]/g, (one) => ENTITIES[one] ?? one);
