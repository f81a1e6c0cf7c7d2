import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { Descriptor } from './descriptor.ts';
import { isKernelError, KernelError } from './errors.ts';
import { fcntl } from './libc.ts';
import { type Packet, sendPacket } from './packet.ts';
import { firstPacket } from './unix.ts';
import { socketPair } from './unix-socket.ts';

// System calls that take as long as somebody else likes: to open a file on a file system that does not answer, to
// close a socket that lingers. A thread in such a call can neither be stopped nor joined, and would keep this
// process, with every lock that it has, from ending. So other processes make these calls, since a process can be
// given up.

/** How many such processes there may be, including those that were killed and have not ended yet. */
const MAX_PROCESSES = 4;
const START_WITHIN_MS = 20_000;
/** To start one takes some 150 ms, so an idle one waits a while. */
const IDLE_MS = 10_000;
const ENTRY = fileURLToPath(import.meta.resolve('#native/aside-process.ts'));
const ECHILD = 10;
const ETIMEDOUT = 110;
const F_GETFD = 1;
const F_SETFD = 2;
const FD_CLOEXEC = 1;
const STDERR = 2;

export interface Errand {
  /** The errand for the process; aside-process.ts knows them all. */
  readonly request: Readonly<Record<string, unknown>>;
  /** Descriptors that move to the process: closed here once it has its copies. */
  readonly given?: readonly Descriptor[];
  readonly timeoutMs: number;
  /** While a process hangs in an errand of a key, no other errand of that key is tried. */
  readonly key: string;
}

interface Helper {
  readonly socket: Descriptor;
  readonly child: ChildProcess;
  idle?: NodeJS.Timeout;
}

/** Somebody who waits for a process: a free one, or one that is being started. */
type Waiting = (helper: Helper | Promise<Helper>) => void;

const idle: Helper[] = [];
const waiting = new Set<Waiting>();
const hanging = new Set<string>();
let processes = 0;

/**
 * Has a process of its own do an errand. Resolves with its answer, whose descriptors are the caller's. KernelError
 * ETIMEDOUT if no process is free in time, or if the errand takes longer than allowed; ECHILD if the process ended.
 * After a time-out the process is killed and forgotten.
 */
export async function runAside(errand: Errand): Promise<Packet> {
  const { request, given = [], timeoutMs, key } = errand;
  if (hanging.has(key)) throw timedOut(key);
  const helper = idle.pop() ?? (await (processes < MAX_PROCESSES ? start() : next(key, timeoutMs)));
  clearTimeout(helper.idle);
  try {
    if (given.length > 0) handOver(helper.socket, given);
    sendPacket(helper.socket.fd, Buffer.from(JSON.stringify(request)));
    const answer = await firstPacket(helper.socket.fd, key, timeoutMs);
    if (answer.bytes.length === 0) throw ended(key);
    release(helper);
    return answer;
  } catch (error) {
    abandon(helper, key);
    throw isKernelError(error, 'EPIPE', 'ECONNRESET') ? ended(key) : error;
  }
}

/** The process keeps these open until the errand follows: whoever closes a file last has to wait for it. */
function handOver(socket: Descriptor, given: readonly Descriptor[]): void {
  const fds = given.map(({ fd }) => fd);
  sendPacket(socket.fd, Buffer.from('{"keep":true}'), fds);
  for (const descriptor of given) descriptor.close();
}

/** Resolves when the process says that it has started: the time of its errands is counted from then on. */
async function start(): Promise<Helper> {
  const [socket, theirs] = socketPair();
  using _theirs = theirs;
  closeOnExec();
  // Without this process's environment, and in a folder that nobody wants to unmount.
  const child = spawn(process.execPath, [ENTRY], {
    cwd: '/',
    env: {},
    stdio: ['ignore', 'ignore', 'inherit', theirs.fd],
  });
  processes += 1;
  child.unref();
  const helper = { socket, child };
  child.once('exit', () => retire(helper));
  // It could not be started: there is no exit.
  child.once('error', () => retire(helper));
  theirs.close();
  try {
    const hello = await firstPacket(socket.fd, ENTRY, START_WITHIN_MS);
    if (hello.bytes.length === 0) throw ended(ENTRY);
    return helper;
  } catch (error) {
    abandon(helper, ENTRY);
    throw error;
  }
}

function retire(helper: Helper): void {
  if (retired.has(helper)) return;
  retired.add(helper);
  processes -= 1;
  const at = idle.indexOf(helper);
  if (at >= 0) {
    clearTimeout(helper.idle);
    idle.splice(at, 1);
    helper.socket.close();
  }
  handOn();
}

const retired = new WeakSet<Helper>();

/**
 * Libraries open descriptors that a child would inherit, such as libnftables its socket, which owns our tables. The
 * child may outlive this process, and would keep the tables that have to go with the socket.
 */
function closeOnExec(): void {
  for (const name of readdirSync('/proc/self/fd')) {
    const fd = Number(name);
    if (fd <= STDERR || (fcntl(fd, F_GETFD, 0) & FD_CLOEXEC) !== 0) continue;
    fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
}

function next(key: string, timeoutMs: number): Promise<Helper> {
  const { promise, resolve, reject } = Promise.withResolvers<Helper>();
  const own: Waiting = (helper) => {
    clearTimeout(timer);
    waiting.delete(own);
    resolve(helper);
  };
  const timer = setTimeout(() => {
    waiting.delete(own);
    reject(timedOut(key));
  }, timeoutMs);
  waiting.add(own);
  return promise;
}

/**
 * The next one who waits gets the process that has become free, or one that is started in place of one that has
 * ended.
 */
function handOn(): void {
  const [first] = waiting;
  if (first === undefined) return;
  const helper = idle.pop();
  if (helper !== undefined) first(helper);
  else if (processes < MAX_PROCESSES) first(start());
}

function release(helper: Helper): void {
  helper.idle = setTimeout(() => {
    idle.splice(idle.indexOf(helper), 1);
    // It ends when its socket does.
    helper.socket.close();
  }, IDLE_MS).unref();
  idle.push(helper);
  handOn();
}

function abandon({ socket, child }: Helper, key: string): void {
  socket.close();
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  // SIGKILL ends a wait that a signal can end; nobody waits for the others.
  hanging.add(key);
  child.once('exit', () => hanging.delete(key));
  child.kill('SIGKILL');
}

const timedOut = (subject: string): KernelError =>
  new KernelError({ operation: 'aside', subject, errno: ETIMEDOUT });

const ended = (subject: string): KernelError =>
  new KernelError({ operation: 'aside', subject, errno: ECHILD });
