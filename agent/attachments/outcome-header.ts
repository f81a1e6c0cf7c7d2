import { hash } from 'node:crypto';
import { canonical } from '#protocol/attachment.ts';
import type { Header } from '../storage/append-log.ts';
import type { Position, RememberedOperation } from './request-log.ts';

/** What the log of outcomes has of a request before its outcome. */
export interface OutcomeHeader {
  readonly operation: RememberedOperation;
  readonly id: string;
  readonly requestId: string | undefined;
  readonly atMs: number;
  /** A hash of the request. */
  readonly content: string;
  readonly position: Position | undefined;
}

export const encodeHeader = (header: OutcomeHeader): Header => {
  const { operation, id, requestId, atMs, content, position } = header;
  return {
    operation,
    id,
    atMs,
    content,
    ...(requestId !== undefined && { requestId }),
    ...(position !== undefined && {
      storedNs: String(position.storedNs),
      sequence: position.sequence,
    }),
  };
};

/** Null for what is no header of an outcome. */
export function parseHeader(header: Header): OutcomeHeader | null {
  const { operation, id, requestId, atMs, content, storedNs, sequence } = header;
  if (operation !== 'attach' && operation !== 'detach' && operation !== 'update') return null;
  if (typeof id !== 'string' || typeof atMs !== 'number' || typeof content !== 'string')
    return null;
  const placed = typeof storedNs === 'string' && /^\d+$/.test(storedNs);
  return {
    operation,
    id,
    requestId: typeof requestId === 'string' ? requestId : undefined,
    atMs,
    content,
    position:
      placed && typeof sequence === 'number' ? { storedNs: BigInt(storedNs), sequence } : undefined,
  };
}

export const hashOf = (content: object): string =>
  hash('sha256', canonical(content), 'base64url').slice(0, 22);
