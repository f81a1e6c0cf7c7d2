import type {
  AttachAnswer,
  CheckAnswer,
  CordonAnswer,
  DetachAnswer,
  FleetListAnswer,
  GetAnswer,
  ListAnswer,
  DryRunAnswer,
  UpdateAnswer,
} from './attachment.ts';
import type {
  LedgerCheckAnswer,
  LedgerForgetAnswer,
  LedgerHostsAnswer,
  LedgerLeasesAnswer,
} from './ledger.ts';
import type { LocalAnswers } from './local-socket.ts';
import type {
  NetworkDeleteAnswer,
  NetworkGetAnswer,
  NetworkListAnswer,
  NetworkPutAnswer,
} from './network.ts';

/** Believes an answer to be what the protocol says it is once its outline fits. */
export type IsAnswer<Answer> = (answer: unknown) => answer is Answer;

type TypeName = 'object' | 'boolean' | 'number';

const outlined =
  <Answer extends object>(
    outline: Readonly<Partial<Record<keyof Answer & string, TypeName>>>,
  ): IsAnswer<Answer> =>
  (answer): answer is Answer => {
    if (typeof answer !== 'object' || answer === null) return false;
    const found = new Map<string, unknown>(Object.entries(answer));
    return Object.entries(outline).every(([key, type]) => {
      const value = found.get(key);
      return value !== null && typeof value === type;
    });
  };

/**
 * For readers that do without the schemas: by operation, whether an answer has the keys that its caller will
 * look at. What is below them is as the protocol says, or the agent is broken.
 */
export const IS_ANSWER = {
  attach: outlined<AttachAnswer>({ attachment: 'object', replayed: 'boolean' }),
  dryRun: outlined<DryRunAnswer>({ dryRun: 'boolean', lease: 'object', operations: 'object' }),
  detach: outlined<DetachAnswer>({ detached: 'boolean', releasing: 'boolean' }),
  update: outlined<UpdateAnswer>({ attachment: 'object' }),
  get: outlined<GetAnswer>({ attachment: 'object' }),
  check: outlined<CheckAnswer>({ inSync: 'boolean', differences: 'object' }),
  cordon: outlined<CordonAnswer>({ cordoned: 'boolean' }),
  list: outlined<ListAnswer>({ attachments: 'object' }),
  fleetList: outlined<FleetListAnswer>({ attachments: 'object', behind: 'object' }),
  networkPut: outlined<NetworkPutAnswer>({
    network: 'object',
    revision: 'number',
    created: 'boolean',
  }),
  networkGet: outlined<NetworkGetAnswer>({
    network: 'object',
    revision: 'number',
    usage: 'object',
  }),
  networkList: outlined<NetworkListAnswer>({ networks: 'object' }),
  networkDelete: outlined<NetworkDeleteAnswer>({ deleted: 'boolean' }),
  ledgerLeases: outlined<LedgerLeasesAnswer>({ leases: 'object' }),
  ledgerHosts: outlined<LedgerHostsAnswer>({ hosts: 'object' }),
  ledgerForget: outlined<LedgerForgetAnswer>({ forgotten: 'boolean', released: 'number' }),
  ledgerCheck: outlined<LedgerCheckAnswer>({ inSync: 'boolean', differences: 'object' }),
} as const;

/** The same of answers on the local socket, by `op`. */
export const IS_LOCAL_ANSWER: { readonly [Op in keyof LocalAnswers]: IsAnswer<LocalAnswers[Op]> } =
  {
    claim: outlined<LocalAnswers['claim']>({ attachment: 'object' }),
    clean: outlined<LocalAnswers['clean']>({ networks: 'object' }),
    health: outlined<LocalAnswers['health']>({ health: 'object' }),
    settle: outlined<LocalAnswers['settle']>({ settled: 'boolean' }),
  };
