import { readFileSync } from 'node:fs';

const MACHINE_ID_FILE = '/etc/machine-id';
const BOOT_ID_FILE = '/proc/sys/kernel/random/boot_id';
/** The content of the file in an image before its first boot (machine-id(5)), and a value that no machine has. */
const NOBODY = /^(uninitialized|0+)$/;
/** What the ledger takes for a machine id. */
const TOKEN = /^[\x21-\x7e]{1,128}$/;

/** This machine cannot be told from others. */
export class MachineError extends Error {
  override readonly name = 'MachineError';
}

/** Which machine this is, and which of its boots. MachineError if /etc/machine-id does not say. */
export function readMachine(): { readonly machineId: string; readonly bootId: string } {
  const machineId = wordIn(MACHINE_ID_FILE);
  if (machineId === '') refuse('is empty');
  if (NOBODY.test(machineId)) refuse(`says "${machineId}"`);
  if (!TOKEN.test(machineId)) refuse('is no machine id');
  return { machineId, bootId: wordIn(BOOT_ID_FILE) };
}

function wordIn(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    if (path === MACHINE_ID_FILE) return refuse(`cannot be read: ${reason}`);
    throw new MachineError(`${path} cannot be read: ${reason}`, { cause });
  }
}

function refuse(why: string): never {
  throw new MachineError(
    `${MACHINE_ID_FILE} ${why}. The ledger tells two machines under one host id apart by ${MACHINE_ID_FILE}: ` +
      'run "systemd-machine-id-setup", or write 32 random hexadecimal digits that no other machine has',
  );
}
