import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { until } from './agent.ts';
import { dyingWithParent, requireTool } from './tools.ts';

// Real sockets in namespaces: who answers, and whom the one who answers saw.

type Kind = 'tcp' | 'udp';

/** Where somebody answers, or is asked; `from` is the address that is asked from. */
export interface Talk {
  readonly kind: Kind;
  readonly host: string;
  readonly port: number;
  readonly from?: string;
}

/** Answers each datagram or connection with its name and the address that it was asked from. */
const SERVER = `
import json, socket, sys, threading
def listen(name, kind, host, port):
    s = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((host, port))
    if kind == 'tcp': s.listen(16)
    def answer():
        while True:
            if kind == 'tcp':
                c, peer = s.accept()
                c.sendall((name + ' ' + peer[0]).encode()); c.close()
            else:
                data, peer = s.recvfrom(2000)
                s.sendto((name + ' ' + peer[0]).encode(), peer)
    threading.Thread(target=answer).start()
for one in json.loads(sys.argv[1]): listen(one['name'], one['kind'], one['host'], one['port'])
print('ready', flush=True)
`;

const ASK = `
import json, socket, sys
def ask(kind, host, port, own=''):
    s = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM)
    s.settimeout(2)
    try:
        if own: s.bind((own, 0))
        s.connect((host, port))
        if kind == 'udp': s.send(b'?')
        return s.recv(200).decode()
    except OSError as e:
        return '-'
print(json.dumps([ask(one['kind'], one['host'], one['port'], one.get('from', '')) for one in json.loads(sys.argv[1])]))
`;

/** A program in a namespace; undefined is this one. */
export const within = (netns: string | undefined, command: readonly string[]): string[] =>
  netns === undefined ? [...command] : [requireTool('ip'), 'netns', 'exec', netns, ...command];

/** Starts servers; they end with what is returned, or with the test. */
export async function serve(
  netns: string | undefined,
  servers: readonly (Talk & { readonly name: string })[],
): Promise<() => Promise<void>> {
  const command = ['python3', '-c', SERVER, JSON.stringify(servers)];
  const [program, args] = dyingWithParent(within(netns, command));
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  child.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()));
  await until('they serve', () => said.includes('ready'));
  return async () => {
    child.kill('SIGKILL');
    await once(child, 'exit');
  };
}

/** What answers there, in order: the server's name and whom it saw; `-` when nobody does within two seconds. */
export function ask(netns: string | undefined, talks: readonly Talk[]): string[] {
  const command = ['python3', '-c', ASK, JSON.stringify(talks)];
  const [program = '', ...args] = within(netns, command);
  return JSON.parse(execFileSync(program, args, { encoding: 'utf8' })) as string[];
}
