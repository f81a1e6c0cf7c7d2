import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import type { Log } from '../../log.ts';
import type { BridgeDescription } from './description.ts';

const setting = z.object({ found: z.string(), set: z.string() });
const description = z.object({
  network: z.string(),
  bridge: z.string(),
  mac: z.string(),
  adopted: z.literal(true).optional(),
  mtu: z.number().optional(),
  subnets: z.array(z.string()),
  gateways: z.array(z.string()),
  undecided: z.array(z.string()),
  linkLocal: z.string().optional(),
  uplink: z.object({ device: z.string(), allowDefaultRoute: z.boolean() }).optional(),
  bridgeSettings: z.record(z.string(), z.number()),
  ownSettings: z.record(z.string(), z.number()),
  forwards: z.array(z.union([z.literal(4), z.literal(6)])),
  localRoutes: z.array(z.string()),
});
const appliedSchema = z.object({
  version: z.literal(1),
  networks: z.array(description),
  settings: z.record(z.string(), setting),
  uplinks: z.record(z.string(), z.object({ up: z.boolean() })),
});

type Contents = Omit<z.infer<typeof appliedSchema>, 'version' | 'networks'> & {
  readonly networks: readonly BridgeDescription[];
};

/**
 * What an agent has made of networks on this host, and what it found before it changed something of the host's own. It is
 * written before each change, so that whoever comes next can take all of it away again. In the runtime folder: a reboot
 * takes what it tells of, too.
 */
export class Applied {
  readonly #file: string | undefined;
  readonly #log: Log;
  #contents: Contents = { networks: [], settings: {}, uplinks: {} };

  /** Without `runtimeDir` it is kept in memory alone: what is tried in a namespace of its own goes with that. */
  constructor({ runtimeDir, log }: { runtimeDir: string | undefined; log: Log }) {
    this.#file = runtimeDir === undefined ? undefined : fileIn(runtimeDir);
    this.#log = log;
  }

  load(): void {
    if (this.#file === undefined) return;
    try {
      this.#contents = read(this.#file) ?? this.#contents;
    } catch (error) {
      this.#log.error(
        { file: this.#file, error: String(error) },
        'what was found on this host before it was changed is not known any more',
      );
    }
  }

  get descriptions(): readonly BridgeDescription[] {
    return this.#contents.networks;
  }

  descriptionOf(network: string): BridgeDescription | undefined {
    return this.#contents.networks.find((one) => one.network === network);
  }

  put(described: BridgeDescription): void {
    const others = this.#contents.networks.filter(({ network }) => network !== described.network);
    this.#write({ ...this.#contents, networks: [...others, described] });
  }

  remove(network: string): void {
    const networks = this.#contents.networks.filter((one) => one.network !== network);
    this.#write({ ...this.#contents, networks });
  }

  /** Before a setting is changed the first time. */
  noteSetting(path: string, { found, set }: { found: string; set: string }): void {
    const before = this.#contents.settings[path];
    if (before?.set === set) return;
    const settings = { ...this.#contents.settings, [path]: { found: before?.found ?? found, set } };
    this.#write({ ...this.#contents, settings });
  }

  /** The settings that were changed, by path. */
  get settings(): Readonly<Contents['settings']> {
    return this.#contents.settings;
  }

  forgetSetting(path: string): void {
    const { [path]: _, ...settings } = this.#contents.settings;
    this.#write({ ...this.#contents, settings });
  }

  /** Before a NIC becomes a port the first time. */
  noteUplink(device: string, found: { up: boolean }): void {
    if (this.#contents.uplinks[device] !== undefined) return;
    const uplinks = { ...this.#contents.uplinks, [device]: found };
    this.#write({ ...this.#contents, uplinks });
  }

  uplink(device: string): { readonly up: boolean } | undefined {
    return this.#contents.uplinks[device];
  }

  forgetUplink(device: string): void {
    const { [device]: _, ...uplinks } = this.#contents.uplinks;
    this.#write({ ...this.#contents, uplinks });
  }

  #write(contents: Contents): void {
    this.#contents = contents;
    if (this.#file === undefined) return;
    mkdirSync(dirname(this.#file), { recursive: true });
    writeFileSync(`${this.#file}.tmp`, JSON.stringify({ version: 1, ...contents }), {
      mode: 0o600,
    });
    renameSync(`${this.#file}.tmp`, this.#file);
  }
}

/** What the agent of this host has made of networks, for whoever is not that agent. Throws where the file is none of ours. */
export const appliedIn = (runtimeDir: string): readonly BridgeDescription[] =>
  read(fileIn(runtimeDir))?.networks ?? [];

const fileIn = (runtimeDir: string): string => join(runtimeDir, 'networks.json');

/** Undefined when there is no such file. */
function read(file: string): Contents | undefined {
  try {
    const { version: _, ...contents } = appliedSchema.parse(JSON.parse(readFileSync(file, 'utf8')));
    return contents;
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    throw error;
  }
}
