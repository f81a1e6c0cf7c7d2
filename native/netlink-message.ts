import { readAttributes } from './codec.ts';
import { EXTENDED_ACK } from './rtnetlink.ts';
import { aligned, CodecError } from './writer.ts';

// Framing (man 7 netlink, linux/netlink.h): one datagram holds one message or more, each behind a header.

/** struct nlmsghdr: length u32, type u16, flags u16, sequence u32, port u32. */
export const NLMSG_HEADER_BYTES = 16;
const NLM_F_ACK_TLVS = 0x200;
const NLM_F_CAPPED = 0x100;
const ERRNO_BYTES = 4;

/** One message from the kernel. `body` is valid until the next call on the socket. */
export interface Received {
  readonly type: number;
  readonly body: Buffer;
}

/** A message with what its header says. */
export interface Framed extends Received {
  readonly flags: number;
  readonly sequence: number;
  /** The port of the socket that asked; in events, of the socket that made the change. */
  readonly port: number;
}

/** Walks the messages of a datagram; CodecError for a length that does not fit. */
export function eachMessage(bytes: Buffer, visit: (message: Framed) => void): void {
  let offset = 0;
  while (offset + NLMSG_HEADER_BYTES <= bytes.length) {
    const length = bytes.readUInt32LE(offset);
    if (length < NLMSG_HEADER_BYTES || offset + length > bytes.length) {
      throw new CodecError(`a message claims ${length} of ${bytes.length - offset} bytes`);
    }
    visit({
      type: bytes.readUInt16LE(offset + 4),
      flags: bytes.readUInt16LE(offset + 6),
      sequence: bytes.readUInt32LE(offset + 8),
      port: bytes.readUInt32LE(offset + 12),
      body: bytes.subarray(offset + NLMSG_HEADER_BYTES, offset + length),
    });
    offset += aligned(length);
  }
}

/** What the kernel made of a request. */
export interface Outcome {
  /** Positive; 0 is success. */
  readonly errno: number;
  /** The kernel's own words, where it gave any. */
  readonly kernelText?: string;
}

/** The content of an acknowledgement (NLMSG_ERROR), or of the end of a dump (NLMSG_DONE). */
export function outcomeOf({ flags, body }: Framed): Outcome {
  const errno = body.length >= ERRNO_BYTES ? Math.abs(body.readInt32LE(0)) : 0;
  if (errno === 0 || (flags & NLM_F_ACK_TLVS) === 0) return { errno };
  const kernelText = extendedText(flags, body);
  return kernelText === undefined ? { errno } : { errno, kernelText };
}

function extendedText(flags: number, body: Buffer): string | undefined {
  // An acknowledgement repeats the request's header after the error number (CAPPED: without the rest of it); the end
  // of a dump does not.
  const start = (flags & NLM_F_CAPPED) === 0 ? ERRNO_BYTES : ERRNO_BYTES + NLMSG_HEADER_BYTES;
  try {
    return readAttributes(EXTENDED_ACK, body.subarray(start)).NLMSGERR_ATTR_MSG;
  } catch (error) {
    // The error number counts; the words are an extra.
    if (error instanceof CodecError) return undefined;
    throw error;
  }
}
