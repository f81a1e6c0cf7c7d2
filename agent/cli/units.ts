import { UsageError } from './errors.ts';

const SECONDS: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3_600, d: 86_400 };
const FACTORS: Readonly<Record<string, number>> = { k: 1e3, M: 1e6, G: 1e9 };

/** The value of a flag that takes a whole number; undefined if the flag is not given. */
export function wholeNumber(flag: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const number = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
  if (Number.isSafeInteger(number)) return number;
  throw new UsageError(`${flag} "${text}": must be a whole number`);
}

/** `90`, `90s`, `15m`, `2h`, `1d` as seconds. */
export function parseSeconds(text: string): number {
  const [, digits, unit = 's'] = /^(\d{1,9})([smhd])?$/.exec(text) ?? [];
  const factor = SECONDS[unit];
  if (digits === undefined || factor === undefined) {
    throw new UsageError(`"${text}" is no duration: write 90, 90s, 15m, 2h or 1d`);
  }
  return Number(digits) * factor;
}

/** `1000000`, `500k`, `100M`, `2.5G` as bits per second; the factors are powers of 1000. */
export function parseBitsPerSecond(text: string): number {
  const [, digits, unit] = /^(\d{1,12}(?:\.\d{1,3})?)([kMG])?$/.exec(text) ?? [];
  const rate = Number(digits) * (unit === undefined ? 1 : (FACTORS[unit] ?? Number.NaN));
  if (!Number.isSafeInteger(rate) || rate <= 0) {
    throw new UsageError(`"${text}" is no rate: write bits per second, as 500k, 100M or 2.5G`);
  }
  return rate;
}

/** Seconds ago, as people say it: `42s`, `17m`, `5h`, `3d`. */
export function age(since: string, now: number): string {
  const seconds = Math.max(0, Math.floor((now - Date.parse(since)) / 1_000));
  if (Number.isNaN(seconds)) return since;
  if (seconds < 120) return `${seconds}s`;
  if (seconds < 7_200) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3_600)}h`;
  return `${Math.floor(seconds / 86_400)}d`;
}

/** The value of a flag with few possible values; any other value is refused by name. */
export function oneOf<Value extends string>(
  flag: string,
  value: string | undefined,
  values: readonly Value[],
): Value | undefined {
  if (value === undefined) return undefined;
  const known = values.find((one) => one === value);
  if (known !== undefined) return known;
  throw new UsageError(`${flag} "${value}": must be ${values.join(', ')}`);
}

/** `1 lease`, `2 leases`. */
export const counted = (number: number, noun: string): string =>
  `${number} ${noun}${number === 1 ? '' : 's'}`;

/** A time in RFC 3339, from that form or as so long ago: `15m`, `2h`. */
export function timeOf(text: string): string {
  const time = Date.parse(text);
  if (/^\d{4}-/.test(text) && !Number.isNaN(time)) return new Date(time).toISOString();
  return new Date(Date.now() - parseSeconds(text) * 1_000).toISOString();
}

/** The values of an option that may be given several times. */
export const collect = (value: string, previous: readonly string[] = []): string[] => [
  ...previous,
  value,
];
