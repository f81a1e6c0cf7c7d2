import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { requireTool } from './tools.ts';

/** A certificate for 127.0.0.1 and localhost, good for servers and for clients, with its key and its authority. */
export interface Certificates {
  readonly caFile: string;
  readonly certFile: string;
  readonly keyFile: string;
}

export interface Authority extends Disposable {
  readonly certificates: Certificates;
  /** Another certificate of the same authority. */
  issue(name: string): Certificates;
}

/** A certificate authority of the test's own. Disposing of it removes all files. */
export function createAuthority(): Authority {
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-tls-'));
  const path = (name: string): string => join(folder, name);
  const openssl = (...words: string[]): void => {
    execFileSync(requireTool('openssl'), words, { cwd: folder, stdio: 'pipe' });
  };
  const keyed = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  openssl(
    ...['req', '-x509', ...keyed, '-days', '2', '-subj', '/CN=volt test authority'],
    ...['-keyout', 'ca.key', '-out', 'ca.pem'],
  );
  writeFileSync(path('names'), 'subjectAltName=IP:127.0.0.1,DNS:localhost\n');
  const issue = (name: string): Certificates => {
    openssl(
      ...['req', ...keyed, '-subj', `/CN=${name}`],
      ...['-keyout', `${name}.key`, '-out', `${name}.csr`],
    );
    openssl(
      ...['x509', '-req', '-days', '2', '-in', `${name}.csr`, '-out', `${name}.pem`],
      ...['-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-extfile', 'names'],
    );
    return { caFile: path('ca.pem'), certFile: path(`${name}.pem`), keyFile: path(`${name}.key`) };
  };
  return {
    certificates: issue('server'),
    issue,
    [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }),
  };
}
