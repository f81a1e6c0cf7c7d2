import { checked, isKernelError } from './errors.ts';
import { getsockopt } from './libc.ts';

const SOL_SOCKET = 1;
const SO_PEERCRED = 17;
const SO_PEERGROUPS = 59;
const UCRED_BYTES = 12;
const GID_BYTES = 4;
const USUAL_GROUPS = 64;

/** Who is at the other end of a unix socket, as the kernel noted it when the peer connected. */
export interface PeerCredentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
  /** Supplementary groups. */
  readonly groups: readonly number[];
}

/** Reads SO_PEERCRED and SO_PEERGROUPS of a connected socket. Throws KernelError. */
export function peerCredentials(fd: number): PeerCredentials {
  const ucred = Buffer.alloc(UCRED_BYTES);
  checked(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, ucred, [UCRED_BYTES]), 'SO_PEERCRED', 'peer');
  return {
    pid: ucred.readInt32LE(0),
    uid: ucred.readUInt32LE(4),
    gid: ucred.readUInt32LE(8),
    groups: peerGroups(fd),
  };
}

function peerGroups(fd: number): number[] {
  const length = [USUAL_GROUPS * GID_BYTES];
  const read = (): Buffer => {
    const gids = Buffer.alloc(length[0] ?? 0);
    checked(getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, gids, length), 'SO_PEERGROUPS', 'peer');
    return gids.subarray(0, length[0]);
  };
  const gids = orLonger(read);
  return Array.from({ length: gids.length / GID_BYTES }, (_, n) =>
    gids.readUInt32LE(n * GID_BYTES),
  );
}

// ERANGE: more groups than the buffer holds (up to 65,536), and now the length says how many.
function orLonger<T>(read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (!isKernelError(error, 'ERANGE')) throw error;
    return read();
  }
}
