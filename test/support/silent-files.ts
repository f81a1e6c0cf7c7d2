import { closeSync, constants, mkdirSync, openSync, readSync, writeSync } from 'node:fs';
import { checked } from '#native/errors.ts';
import { mount, umount2 } from '#native/libc.ts';
import { watchReadable } from '#native/poll.ts';

// A file system that is there and never answers, as a dead NFS server or a stopped FUSE daemon is one: FUSE by hand
// (linux/fuse.h), without a library.

const FUSE_INIT = 26;
const IN_HEADER_BYTES = 40;
const OUT_HEADER_BYTES = 16;
const INIT_OUT_BYTES = 64;
const MAX_WRITE = 4_096;
const BUFFER_BYTES = 64 * 1_024;
const MNT_DETACH = 2;

export interface SilentFiles extends Disposable {
  /** How many requests it has taken and not answered. A process that waits for one of those cannot be killed. */
  readonly taken: () => number;
}

/** Mounts it on a folder, made if need be; gone when disposed of, and whoever waits gets ENOTCONN. */
export function mountSilentFiles(folder: string): SilentFiles {
  mkdirSync(folder, { recursive: true });
  const fd = openSync('/dev/fuse', constants.O_RDWR | constants.O_NONBLOCK);
  const options = `fd=${fd},rootmode=40000,user_id=0,group_id=0,allow_other`;
  checked(mount('silent', folder, 'fuse', 0, options), 'mount', folder);
  const buffer = Buffer.alloc(BUFFER_BYTES);
  let taken = 0;
  const watch = watchReadable(fd, () => {
    readSync(fd, buffer);
    if (buffer.readUInt32LE(4) === FUSE_INIT) writeSync(fd, initAnswer(buffer));
    else taken += 1;
  });
  return {
    taken: () => taken,
    [Symbol.dispose]: () => {
      watch[Symbol.dispose]();
      closeSync(fd);
      umount2(folder, MNT_DETACH);
    },
  };
}

function initAnswer(request: Buffer): Buffer {
  const answer = Buffer.alloc(OUT_HEADER_BYTES + INIT_OUT_BYTES);
  answer.writeUInt32LE(answer.length, 0);
  answer.writeBigUInt64LE(request.readBigUInt64LE(8), 8);
  // The kernel's own version of the protocol, and nothing optional.
  answer.writeUInt32LE(request.readUInt32LE(IN_HEADER_BYTES), OUT_HEADER_BYTES);
  answer.writeUInt32LE(request.readUInt32LE(IN_HEADER_BYTES + 4), OUT_HEADER_BYTES + 4);
  answer.writeUInt32LE(MAX_WRITE, OUT_HEADER_BYTES + 20);
  answer.writeUInt32LE(1, OUT_HEADER_BYTES + 24);
  return answer;
}
