import { EXIT } from './exit-codes.ts';

/** The command line, or a file that it names, cannot be used. No request was sent. */
export class UsageError extends Error {
  readonly code = 'USAGE';
}

/** `exec` could not start its command; `exitCode` is the code with which a shell exits for the same reason. */
export class ExecError extends Error {
  readonly code = 'EXEC';
  readonly exitCode: typeof EXIT.cannotExecute | typeof EXIT.commandNotFound;

  constructor(command: string, cause: Error & { readonly code: string }) {
    super(`cannot execute ${command}: ${cause.code}`, { cause });
    this.exitCode = cause.code === 'ENOENT' ? EXIT.commandNotFound : EXIT.cannotExecute;
  }
}
