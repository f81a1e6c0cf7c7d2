import type { z } from 'zod';
import {
  type Attachment,
  attachRequestSchema,
  checkRequestSchema,
  detachRequestSchema,
  getRequestSchema,
  listRequestSchema,
  networkDeleteRequestSchema,
  networkGetRequestSchema,
  networkListRequestSchema,
  networkPutRequestSchema,
  parseRequest,
} from '#protocol/attachment.ts';
import { decode, encodeAnswer } from '#protocol/envelope.ts';
import { ERRORS, toErrorBody, VoltError } from '#protocol/errors.ts';
import { subjects } from '#protocol/subjects.ts';
import type { Ledger } from '#ipam-store/ledger.ts';
import type { Attachments, Call } from './attachments.ts';
import type { BusAnswer, BusEndpoint, BusRequest } from './bus.ts';
import { toVoltError } from './errors.ts';
import type { EventLog } from './events.ts';
import type { Inspection } from './inspection.ts';
import type { Log } from './log.ts';
import { type RequestTrace, tracedRequest } from './trace.ts';
