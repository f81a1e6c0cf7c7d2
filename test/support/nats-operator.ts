import { nkeys } from 'nats';

// A NATS of an operator, as `nsc` sets one up: users come with a JWT that their account has signed.
// https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt

export interface Operator {
  /** Lines of nats-server's configuration. */
  readonly config: string;
  /** What `nsc generate creds` writes for a user. */
  readonly credentials: string;
}

type KeyPair = ReturnType<typeof nkeys.createUser>;

const text = new TextDecoder();
const base64 = (value: string | Uint8Array): string => Buffer.from(value).toString('base64url');

/** An operator with one account that may use JetStream, and one user. */
export function createOperator(): Operator {
  const operator = nkeys.createOperator();
  const account = nkeys.createAccount();
  // JetStream does not start without one.
  const system = nkeys.createAccount();
  const user = nkeys.createUser();
  const all = { subs: -1, data: -1, payload: -1 };
  const storage = { mem_storage: -1, disk_storage: -1, streams: -1, consumer: -1 };
  const unstored = { ...all, imports: -1, exports: -1, conn: -1, leaf: -1 };
  const limits = { ...unstored, ...storage };
  const operatorJwt = signed(operator, operator, 'operator', {});
  const userJwt = signed(account, user, 'user', { ...all, pub: {}, sub: {} });
  const seed = text.decode(user.getSeed());
  return {
    config: [
      `operator: ${operatorJwt}`,
      'resolver: MEMORY',
      `system_account: ${system.getPublicKey()}`,
      'resolver_preload: {',
      `  ${account.getPublicKey()}: ${signed(operator, account, 'account', { limits })}`,
      `  ${system.getPublicKey()}: ${signed(operator, system, 'account', { limits: unstored })}`,
      '}',
    ].join('\n'),
    credentials: [
      '-----BEGIN NATS USER JWT-----',
      userJwt,
      '------END NATS USER JWT------',
      '',
      '************************* IMPORTANT *************************',
      'NKEY Seed printed below can be used to sign and prove identity.',
      'NKEYs are sensitive and should be treated as secrets.',
      '',
      '-----BEGIN USER NKEY SEED-----',
      seed,
      '------END USER NKEY SEED------',
      '',
      '*************************************************************',
      '',
    ].join('\n'),
  };
}

function signed(by: KeyPair, of: KeyPair, type: string, nats: object): string {
  const header = { typ: 'JWT', alg: 'ed25519-nkey' };
  const claims = {
    jti: of.getPublicKey(),
    iat: Math.floor(Date.now() / 1_000),
    iss: by.getPublicKey(),
    name: type,
    sub: of.getPublicKey(),
    nats: { ...nats, type, version: 2 },
  };
  const content = [header, claims].map((part) => base64(JSON.stringify(part))).join('.');
  return `${content}.${base64(by.sign(Buffer.from(content)))}`;
}
