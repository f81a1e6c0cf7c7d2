/** How streams are made: the section `nats.streams` of agent.json. */
export interface StreamSettings {
  readonly replicas: number;
  readonly storage: 'file' | 'memory';
  readonly eventAgeSeconds: number;
  readonly eventBytes: number;
  readonly jobAgeSeconds: number;
  readonly jobBytes: number;
}

const DAY_SECONDS = 86_400;
export const DEFAULT_STREAMS: StreamSettings = {
  replicas: 1,
  storage: 'file',
  eventAgeSeconds: 7 * DAY_SECONDS,
  eventBytes: 1 << 30,
  jobAgeSeconds: DAY_SECONDS / 2,
  jobBytes: 1 << 30,
};

const AGE_SECONDS = { least: 60, most: 10 * 365 * DAY_SECONDS } as const;
const BYTES = { least: 1 << 20, most: 2 ** 50 } as const;

/** The least and the most of each, for agents and for `voltnet setup` alike. */
export const STREAM_LIMITS = {
  // JetStream keeps five at most.
  replicas: { least: 1, most: 5 },
  eventAgeSeconds: AGE_SECONDS,
  eventBytes: BYTES,
  jobAgeSeconds: AGE_SECONDS,
  jobBytes: BYTES,
} as const satisfies Readonly<
  Record<
    Exclude<keyof StreamSettings, 'storage'>,
    { readonly least: number; readonly most: number }
  >
>;
