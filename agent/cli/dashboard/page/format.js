const NUMBER = new Intl.NumberFormat('en');

/** `10,000`; the sizes of IPv6 networks as `1.8e19`. */
export const count = (number) =>
  number >= 1e9 ? number.toExponential(1).replace('e+', 'e') : NUMBER.format(number);

/** Milliseconds as people read them. */
export function duration(ms) {
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 10_000) return `${NUMBER.format(Math.round(ms))} ms`;
  return `${(ms / 1_000).toFixed(1)} s`;
}

/** `42s`, `17m`, `5h`, `3d`, as on the command line. */
export function age(time, now = Date.now()) {
  const seconds = Math.max(0, Math.floor((now - Date.parse(time)) / 1_000));
  if (Number.isNaN(seconds)) return '–';
  if (seconds < 120) return `${seconds}s`;
  if (seconds < 7_200) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3_600)}h`;
  return `${Math.floor(seconds / 86_400)}d`;
}

const CLOCK = new Intl.DateTimeFormat('en-GB', { timeStyle: 'medium' });
const MINUTE = new Intl.DateTimeFormat('en-GB', { timeStyle: 'short' });
const WHOLE = new Intl.DateTimeFormat('en-GB', { dateStyle: 'medium', timeStyle: 'medium' });

const formatted = (format) => (time) => {
  const at = Date.parse(time);
  return Number.isNaN(at) ? '–' : format.format(at);
};

/** In the time zone of the browser. */
export const clock = formatted(CLOCK);
export const minute = formatted(MINUTE);
export const whole = formatted(WHOLE);

/** `1 lease`, `2 leases`. */
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? '' : 's'}`;
