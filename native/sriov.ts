import {
  closeSync,
  constants,
  existsSync,
  openSync,
  readdirSync,
  readlinkSync,
  writeSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { KernelError } from './errors.ts';
import { traced } from './trace.ts';

// Virtual functions as sysfs shows them (Documentation/ABI/testing/sysfs-bus-pci). They go by PCI address: only that
// stays the same when a function changes its driver, its namespace or its name.

const NET = '/sys/class/net';
const PCI = '/sys/bus/pci';

export interface VirtualFunction {
  /** Its number at the physical function: `virtfn3`, `vf 3` of `ip link`. */
  readonly number: number;
  /** `0000:01:10.0` */
  readonly pciAddress: string;
}

/** The virtual functions of a physical one, by number; none if it has none, or if there is no such device. */
export function virtualFunctions(physical: string): VirtualFunction[] {
  const folder = join(NET, physical, 'device');
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .flatMap((name) => /^virtfn(\d+)$/.exec(name)?.[1] ?? [])
    .map((digits) => ({
      number: Number(digits),
      pciAddress: basename(readlinkSync(join(folder, `virtfn${digits}`))),
    }))
    .toSorted((a, b) => a.number - b.number);
}

/** The network device of a function in the namespace of this process's /sys; undefined when it has none there. */
export function networkDeviceOf(pciAddress: string): string | undefined {
  const folder = join(PCI, 'devices', pciAddress, 'net');
  return existsSync(folder) ? readdirSync(folder)[0] : undefined;
}

/** `igbvf`, `vfio-pci`; undefined when none is bound. */
export const driverOf = (pciAddress: string): string | undefined =>
  linkTarget(join(PCI, 'devices', pciAddress, 'driver'));

/** The group file that a VMM opens, `/dev/vfio/12`; undefined without an IOMMU. */
export function iommuGroupOf(pciAddress: string): string | undefined {
  const group = linkTarget(join(PCI, 'devices', pciAddress, 'iommu_group'));
  return group === undefined ? undefined : `/dev/vfio/${group}`;
}

/**
 * Binds a function to a driver, in place of its present one; the driver's module has to be loaded. KernelError:
 * ENODEV if the driver does not take it, EBUSY and the like.
 */
export function bindDriver(pciAddress: string, driver: string): void {
  traced('bind', `${pciAddress} ${driver}`, () => {
    if (driverOf(pciAddress) === driver) return;
    const device = join(PCI, 'devices', pciAddress);
    write(join(device, 'driver_override'), driver);
    if (driverOf(pciAddress) !== undefined) write(join(device, 'driver', 'unbind'), pciAddress);
    write(join(PCI, 'drivers_probe'), pciAddress);
    if (driverOf(pciAddress) === driver) return;
    throw new KernelError({ operation: 'bind', subject: `${pciAddress} ${driver}`, errno: ENODEV });
  });
}

/**
 * Gives the function back to the driver that the kernel chooses. Off the main thread: while a process holds the
 * device by vfio, the kernel waits for it to let go.
 */
export async function unbindDriver(pciAddress: string): Promise<void> {
  const device = join(PCI, 'devices', pciAddress);
  if (!existsSync(device)) return;
  await writeAsync(join(device, 'driver_override'), '\n');
  if (driverOf(pciAddress) !== undefined) {
    await writeAsync(join(device, 'driver', 'unbind'), pciAddress);
  }
  await writeAsync(join(PCI, 'drivers_probe'), pciAddress);
}

const ENODEV = 19;
/** Some attributes can only be written, and are not opened for reading, even by root. Writing never makes a new one. */
const WRITE_ONLY = constants.O_WRONLY;

function linkTarget(path: string): string | undefined {
  try {
    return basename(readlinkSync(path));
  } catch {
    return undefined;
  }
}

function write(path: string, text: string): void {
  try {
    const fd = openSync(path, WRITE_ONLY);
    try {
      writeSync(fd, text);
    } finally {
      closeSync(fd);
    }
  } catch (cause) {
    throw asKernelError(path, cause);
  }
}

async function writeAsync(path: string, text: string): Promise<void> {
  try {
    await using file = await open(path, WRITE_ONLY);
    await file.write(text);
  } catch (cause) {
    throw asKernelError(path, cause);
  }
}

function asKernelError(path: string, cause: unknown): unknown {
  const errno = cause instanceof Error && 'errno' in cause ? cause.errno : undefined;
  if (typeof errno !== 'number') return cause;
  // libuv's numbers are negative.
  return new KernelError({ operation: 'write', subject: path, errno: -errno, cause });
}
