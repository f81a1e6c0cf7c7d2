import { constants as os } from 'node:os';
import { errno as lastErrno, strerror } from './libc.ts';

/** Where a kernel call failed and what the kernel said of it. */
export interface KernelErrorFields {
  /** The call: a syscall, an ioctl or a netlink message type: `RTM_NEWLINK`, `TUNSETIFF`, `setns`. */
  readonly operation: string;
  /** The object of the call: a device name, a path, an address. */
  readonly subject: string;
  /** The positive errno: 17 for EEXIST. */
  readonly errno: number;
  /** The kernel's own words (netlink extended acknowledgement, NLMSGERR_ATTR_MSG), if it gave any. */
  readonly kernelText?: string;
  readonly cause?: unknown;
}

/** A call that the kernel refused. Branch on `code` ("EEXIST"), never on the message. */
export class KernelError extends Error {
  readonly code: string;
  readonly operation: string;
  readonly subject: string;
  readonly errno: number;
  readonly kernelText: string | undefined;

  constructor({ operation, subject, errno, kernelText, cause }: KernelErrorFields) {
    const code = errnoName(errno);
    const reason = kernelText === undefined ? strerror(errno) : `kernel: "${kernelText}"`;
    super(`${operation} ${subject}: ${code} (${reason})`, { cause });
    this.name = 'KernelError';
    this.code = code;
    this.operation = operation;
    this.subject = subject;
    this.errno = errno;
    this.kernelText = kernelText;
  }
}

export const isKernelError = (error: unknown, ...codes: string[]): error is KernelError =>
  error instanceof KernelError && (codes.length === 0 || codes.includes(error.code));

/**
 * Passes a libc result through, or throws KernelError with the thread's errno when it is negative.
 * The call must be the argument itself: anything between the call and this function may change errno.
 */
export function checked(result: number, operation: string, subject: string): number {
  if (result < 0) throw new KernelError({ operation, subject, errno: lastErrno() });
  return result;
}

// libuv's table in node:os lacks some names that netlink and TUN return (asm-generic/errno.h).
const ERRNO_NAMES = new Map<number, string>([
  ...Object.entries(os.errno).map(([name, number]): [number, string] => [number, name]),
  [11, 'EAGAIN'],
  [52, 'EBADE'],
  [54, 'EXFULL'],
  [77, 'EBADFD'],
  [94, 'ESOCKTNOSUPPORT'],
  [95, 'EOPNOTSUPP'],
  [96, 'EPFNOSUPPORT'],
  [512, 'ERESTARTSYS'],
  [524, 'ENOTSUPP'],
]);

export const errnoName = (errno: number): string => ERRNO_NAMES.get(errno) ?? `E${errno}`;
