import { parentPort, workerData } from 'node:worker_threads';
import { toErrorBody } from '#protocol/errors.ts';
import { closeHome } from '#native/namespace.ts';
import { toVoltError } from '../../errors.ts';
import { Firewall } from '../firewall/firewall.ts';
import { Kernel } from '../kernel.ts';
import { createLog } from '../../log.ts';
import { dryRun } from './dry-run.ts';
import type { QueuedDryRun, DryRunSettings } from './dry-runs.ts';
import { Removal } from './removal.ts';
import { networkTypesOver } from './types.ts';

// The thread of dry runs (`DryRuns`). Each thread has its own current network namespace: at first that of the thread
// that started it. It may enter another one without any effect on other threads.

const { host, nftablesTable }: DryRunSettings = workerData;
const log = createLog('silent', host);

/**
 * No records are needed: nothing is removed one by one, since the whole namespace goes, and all names were chosen
 * before.
 */
const noRecords = { namesDevice: () => false, get: () => undefined, values: () => [] };
/** The number of a macvtap's character device is in a /sys that is not mounted there, and nobody opens the device. */
const findDevice = (): string => '/dev/null';

function run({ knowsBridge, ...order }: QueuedDryRun): object {
  try {
    using kernel = new Kernel();
    const typesOver = (stage: Kernel) => {
      using opened = new DisposableStack();
      const firewall = opened.use(new Firewall({ log, table: nftablesTable }));
      firewall.start();
      const removal = new Removal(stage, log);
      const parts = { host, kernel: stage, removal, journal: noRecords, firewall, log, findDevice };
      const all = opened.move();
      return Object.assign(networkTypesOver(parts), { [Symbol.dispose]: () => all.dispose() });
    };
    return { operations: dryRun({ kernel, knowsBridge, typesOver }, order) };
  } catch (error) {
    return toErrorBody(toVoltError(error));
  }
}

parentPort?.on('message', (order: QueuedDryRun | null) => {
  if (order !== null) {
    parentPort?.postMessage(run(order), []);
    return;
  }
  closeHome();
  parentPort?.close();
});
