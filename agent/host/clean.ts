import { rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Config } from '../config.ts';
import { readMachine } from '../fleet/machine.ts';
import { ownFolder, whileNoAgentRuns } from '../fleet/own-folders.ts';
import type { Log } from '../log.ts';
import { Journal } from '../storage/journal.ts';
import { endGuestServers } from './dnsmasq/guest-servers.ts';
import { openHostNetwork } from './networks/types.ts';
import { isMadeByAgent, taggedId } from './ownership.ts';

export interface Cleaned {
  readonly attachments: number;
  readonly networks: readonly string[];
  /** Devices that an agent made and that no record named. */
  readonly devices: readonly string[];
}

/**
 * Removes everything that agents have made from a host whose agent is stopped: devices, bridges, rules, records.
 * Restores what agents have changed. Leases stay in the ledger until the host is forgotten there. HOST_ALIVE: an agent
 * runs. FolderError: the folders are not the agent's alone.
 */
export async function cleanHost(
  config: Pick<Config, 'host' | 'nftablesTable' | 'runtimeDir' | 'stateDir'>,
  log: Log,
): Promise<Cleaned> {
  const { runtimeDir, stateDir } = config;
  ownFolder('runtimeDir', runtimeDir, 0o755);
  using _lock = whileNoAgentRuns(runtimeDir);
  const { bootId } = readMachine();
  const journal = new Journal({ runtimeDir, stateDir, bootId, log });
  journal.load();
  const host = openHostNetwork({ config, journal, log });
  const records = journal.values();
  for (const record of records) {
    await host.networkTypes[record.networkType]?.detach(record).removed;
    journal.remove(record.id);
  }
  await endGuestServers(runtimeDir, log);
  const networks = host.bridges.clean();
  const devices: string[] = [];
  for (const link of host.links()) {
    const ours = isMadeByAgent(link) || taggedId(link.alias) !== undefined;
    // Hardware is never deleted.
    if (!ours || link.kind === undefined) continue;
    await host.devices.remove(link);
    devices.push(link.name);
  }
  host.firewall.unload();
  await host.dryRuns.close();
  rmSync(join(runtimeDir, 'networks.json'), { force: true });
  return { attachments: records.length, networks, devices };
}
