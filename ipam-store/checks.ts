import { VoltError } from '#protocol/errors.ts';
import { HOST_PATTERN, HOSTNAME_PATTERN, ID_PATTERN, NETWORK_PATTERN } from '#protocol/names.ts';

// What callers give becomes parts of keys, of entries that are taken apart again, and of records that every
// agent of the fleet reads: one that cannot be read would stop them all. So each field is checked here, also
// where the types of the callers forbid what is refused.

/** What a value has to be; undefined where it is that. */
type Check = (value: unknown) => string | undefined;

const MAX_TTL_SECONDS = 31_536_000;
const MAX_ADDRESS_CHARACTERS = 45;
const MAX_SHOWN_CHARACTERS = 40;
/** Boot and machine ids; their form is the operating system's affair. */
const TOKEN_PATTERN = /^[\x21-\x7e]{1,128}$/;
/** "host network id", as the last entry of a page ends it. */
const CURSOR_PATTERN = /^[\x20-\x7e]{1,160}$/;

const matching =
  (pattern: RegExp, what: string): Check =>
  (value) =>
    typeof value === 'string' && pattern.test(value) ? undefined : `must be ${what}`;

const whole =
  (least: number, most = Number.MAX_SAFE_INTEGER): Check =>
  (value) => {
    const fits = typeof value === 'number' && Number.isSafeInteger(value);
    return fits && value >= least && value <= most
      ? undefined
      : `must be a whole number from ${least} to ${most}`;
  };

const positive =
  (most: number): Check =>
  (value) =>
    typeof value === 'number' && value > 0 && value <= most
      ? undefined
      : `must be a number above 0, and ${most} at most`;

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null;

const addressText: Check = (value) =>
  typeof value === 'string' && value.length <= MAX_ADDRESS_CHARACTERS
    ? undefined
    : 'must be an address as text';

const addressTexts: Check = (value) =>
  Array.isArray(value) && value.every((one) => addressText(one) === undefined)
    ? undefined
    : 'must be a list of addresses as text';

const flag: Check = (value) => (typeof value === 'boolean' ? undefined : 'must be true or false');

const checkedLists = new WeakSet<object>();

/** Each list once: that of a large fleet comes with every heartbeat. */
function isHostList(value: unknown): boolean {
  if (!Array.isArray(value)) return false;
  if (checkedLists.has(value)) return true;
  const fits = value.every((one) => typeof one === 'string' && HOST_PATTERN.test(one));
  if (fits) checkedLists.add(value);
  return fits;
}

export const CHECKS = {
  id: matching(ID_PATTERN, 'an attachment id'),
  workload: matching(ID_PATTERN, 'a workload id'),
  kind: (value) =>
    value === 'vm' || value === 'container' ? undefined : 'must be vm or container',
  network: matching(NETWORK_PATTERN, 'the name of a network'),
  revision: whole(1),
  generation: whole(1),
  host: matching(HOST_PATTERN, 'a host id'),
  machineId: matching(TOKEN_PATTERN, 'a machine id'),
  agentId: matching(TOKEN_PATTERN, 'an agent id'),
  bootId: matching(TOKEN_PATTERN, 'a boot id'),
  mac: addressText,
  addresses: addressTexts,
  avoid: addressTexts,
  hostname: matching(HOSTNAME_PATTERN, 'an RFC 1123 host name'),
  ttlSeconds: positive(MAX_TTL_SECONDS),
  heartbeatSeconds: positive(MAX_TTL_SECONDS),
  suspectAfterSeconds: positive(MAX_TTL_SECONDS),
  recoveryWindowSeconds: (value) =>
    value === null ? undefined : positive(MAX_TTL_SECONDS)(value) && 'must be null or seconds',
  seen: (value) =>
    isObject(value) &&
    ['generation', 'revision', 'roster'].every((key) => whole(0)(value[key]) === undefined) &&
    isHostList(value['hosts'])
      ? undefined
      : 'must be three counters and a list of host ids',
  epoch: matching(/^\d{1,9}$/, 'an epoch'),
  newFleet: flag,
  late: whole(0),
  cool: flag,
  cursor: matching(CURSOR_PATTERN, 'what the page before ended with'),
  limit: whole(Number.MIN_SAFE_INTEGER),
} as const satisfies Record<string, Check>;

export type Checked = keyof typeof CHECKS;

/** Throws INVALID_REQUEST, with the field in `details.path`, for the first that is missing or cannot be. */
export function need(values: object, ...fields: readonly Checked[]): void {
  for (const field of fields) {
    const value: unknown = Reflect.get(values, field);
    const wrong = CHECKS[field](value);
    if (wrong !== undefined) refuseField(field, `${wrong}, not ${shown(value)}`);
  }
}

/** The same for fields that may be absent. */
export function allow(values: object, ...fields: readonly Checked[]): void {
  for (const field of fields) if (Reflect.get(values, field) !== undefined) need(values, field);
}

export function refuseField(path: string, message: string): never {
  throw new VoltError('INVALID_REQUEST', `${path}: ${message}`, { details: { path } });
}

/** What was given, short, and as text that survives every encoding. */
function shown(value: unknown): string {
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'a list' : 'a map';
  if (typeof value !== 'string') return String(value);
  const short = value.slice(0, MAX_SHOWN_CHARACTERS).toWellFormed();
  return JSON.stringify(value.length > short.length ? `${short}…` : short);
}
