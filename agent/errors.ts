import { VoltError } from '#protocol/errors.ts';
import { KernelError } from '#native/errors.ts';
import { UnansweredError } from '#native/namespace.ts';

/** Whatever was thrown, as one of the contract's errors. */
export function toVoltError(error: unknown): VoltError {
  if (error instanceof VoltError) return error;
  // An undo that failed hides what it was undone for; that is what the caller has to hear.
  if (error instanceof SuppressedError) return toVoltError(error.suppressed);
  if (error instanceof KernelError) return fromKernelError(error);
  if (error instanceof UnansweredError) {
    const details = { netns: error.path };
    return new VoltError('DEADLINE_EXCEEDED', error.message, { details, cause: error });
  }
  if (isFullDisk(error))
    return new VoltError('OVERLOADED', `the disk is full: ${error.message}`, { cause: error });
  const reason = error instanceof Error ? error.message : String(error);
  return new VoltError('INTERNAL', reason, { cause: error });
}

/**
 * Why, for a line of the log. Whoever looks for the cause of an INTERNAL error has to know where it was thrown, which JSON
 * does not say of an Error.
 */
export const loggedCause = ({ code, cause }: VoltError): unknown =>
  code === 'INTERNAL' && cause instanceof Error ? cause.stack : cause;

/** STORE_UNAVAILABLE leaves open whether the ledger did what it was asked, unless the request never left. */
export const mayHaveBeenDone = (error: unknown): boolean =>
  error instanceof VoltError &&
  error.code === 'STORE_UNAVAILABLE' &&
  error.details?.['sent'] !== false;

const isFullDisk = (error: unknown): error is Error =>
  error instanceof Error && 'code' in error && (error.code === 'ENOSPC' || error.code === 'EDQUOT');

function fromKernelError(error: KernelError): VoltError {
  const { operation, subject, code: errno, kernelText } = error;
  const details = { errno, operation, subject, ...(kernelText !== undefined && { kernelText }) };
  const options = { details, cause: error };
  switch (errno) {
    case 'EXFULL':
      return new VoltError('BRIDGE_FULL', `the bridge has no free port for ${subject}`, options);
    case 'EEXIST':
      return new VoltError('INTERFACE_EXISTS', error.message, options);
    case 'EBUSY':
      return new VoltError('DEVICE_BUSY', error.message, options);
    case 'EPERM':
    case 'EACCES':
      return new VoltError(
        'KERNEL_ERROR',
        `${error.message}: a capability is missing (${operation === 'mknod' ? 'CAP_MKNOD' : 'CAP_NET_ADMIN, CAP_SYS_ADMIN'})`,
        options,
      );
    default:
      return new VoltError('KERNEL_ERROR', error.message, options);
  }
}
