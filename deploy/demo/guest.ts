import { stripVTControlCharacters } from 'node:util';
import { qemuCommand } from '../guest/qemu.ts';
import type { Stage } from './stage.ts';
import type { World } from './world.ts';

const BOOT_MS = 120_000;
const PROGRESS_MS = 3_000;

export interface GuestOptions {
  readonly stage: Stage;
  readonly world: World;
  /** The attachment of the VM. */
  readonly id: string;
  /** With prefix length. */
  readonly address: string;
  readonly gateway: string;
  /** Whom the guest pings when it is up. */
  readonly ping: string;
  /** Called while the guest is up. */
  readonly whileItRuns: () => Promise<void>;
}

/** Boots a guest in QEMU on the TAP whose descriptor `voltnet exec` claims, and ends it afterwards. */
export async function runGuest(options: GuestOptions): Promise<void> {
  const { stage, world, id, address, gateway, ping, whileItRuns } = options;
  const command = qemuCommand({ mac: '{mac}', queues: 1, address, gateway, ping });
  stage.command(`voltnet exec ${id} -- qemu-system-x86_64 ... -netdev tap,id=n0,fd={fd} \\`);
  stage.fact('      -device virtio-net-pci,netdev=n0,mac={mac}');
  const started = performance.now();
  const seconds = (): string => `${((performance.now() - started) / 1_000).toFixed(0)} s`;
  const machine = world.exec([id, '--', ...command]);
  const progress = setInterval(() => {
    stage.fact(`booting, ${seconds()}`);
  }, PROGRESS_MS);
  try {
    await machine.until(() => machine.output.includes('GUEST READY'), BOOT_MS);
  } finally {
    clearInterval(progress);
  }
  stage.fact(`up after ${seconds()}, QEMU is process ${machine.pid}; on its console:`);
  stage.output(consoleOf(machine.output));
  if (!machine.output.includes(`GUEST ping ${ping} answered`)) {
    throw new Error(`the guest cannot ping ${ping}`);
  }
  await whileItRuns();
  await machine.stop();
  stage.fact('the virtual machine is off');
}

/** From its addresses on: what firmware and kernel said, and did to the screen, is not what the demo is about. */
function consoleOf(output: string): string {
  const text = stripVTControlCharacters(output).replaceAll('\r', '');
  return text.slice(Math.max(0, text.search(/\d+: eth0: /)));
}
