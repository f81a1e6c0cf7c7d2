import { type Figure, median, quantile, shown, type Table } from './figures.ts';

// Charts as SVG text: a bar to the median of each row, a line on to p95 and p99. The colours follow the reader's choice
// of light or dark, and the ground is the page's own.

const LABEL_WIDTH = 250;
const BAR_WIDTH = 380;
const VALUE_WIDTH = 130;
const ROW_HEIGHT = 26;
const BAR_HEIGHT = 14;
const TOP = 34;
const BOTTOM = 22;

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
  const most = Math.max(...rows.map(({ values }) => quantile(values, 0.99)));
  if (!Number.isFinite(most) || most <= 0) return undefined;
  const scale = BAR_WIDTH / most;
  const width = LABEL_WIDTH + BAR_WIDTH + VALUE_WIDTH;
  const height = TOP + rows.length * ROW_HEIGHT + BOTTOM;
  const withTails = rows.some(({ values }) => values.length > 1);
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img">`,
    `<title>${escaped(title)}</title>`,
    `<style>${STYLE}</style>`,
    `<text class="head" x="8" y="20">${escaped(`${title}, ${unit}`)}</text>`,
    ...rows.flatMap((figure, n) => rowOf(figure, TOP + n * ROW_HEIGHT, scale)),
    ...(withTails
      ? [`<text class="small" x="8" y="${height - 6}">bar: median; marks: p95 and p99</text>`]
      : []),
    '</svg>',
    '',
  ].join('\n');
}

function rowOf({ name, values }: Figure, y: number, scale: number): string[] {
  const at = (share: number): string => (LABEL_WIDTH + quantile(values, share) * scale).toFixed(1);
  const length = median(values) * scale;
  const middle = y + ROW_HEIGHT / 2;
  const top = middle - BAR_HEIGHT / 2;
  const mark = (share: number): string =>
    `<path class="tail" d="M${at(share)} ${top + 2}v${BAR_HEIGHT - 4}"/>`;
  const tail =
    values.length < 2
      ? []
      : [
          `<path class="tail" d="M${(LABEL_WIDTH + length).toFixed(1)} ${middle}H${at(0.99)}"/>`,
          ...[0.95, 0.99].map(mark),
        ];
  const end = Number(at(0.99)) + 8;
  return [
    `<text x="${LABEL_WIDTH - 8}" y="${middle + 4}" text-anchor="end">${escaped(name)}</text>`,
    `<rect class="bar" x="${LABEL_WIDTH}" y="${top}" width="${length.toFixed(1)}" height="${BAR_HEIGHT}" rx="2"/>`,
    ...tail,
    `<text class="small" x="${end.toFixed(1)}" y="${middle + 4}">${shown(median(values))}</text>`,
  ];
}

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
};

const escaped = (text: string): string => text.replace(/[&<>"]/g, (one) => ENTITIES[one] ?? one);
