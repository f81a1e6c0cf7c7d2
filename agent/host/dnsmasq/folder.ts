import { createHash } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';

/** Files among which names are spread: each change is one small file for dnsmasq to read. */
const NAME_FILES = 64;

/** What a write has changed, as far as dnsmasq has to be told. */
export interface Written {
  /** It reads this by itself when it starts, and not again. */
  readonly conf: boolean;
  /** It hears of new files by itself, and not of other ones. */
  readonly hosts: boolean;
}

/**
 * The files of one network's dnsmasq, as they are to be and as they are. They may be read by all users, since dnsmasq is
 * none of root's; what they say is no secret on the host (`bridge fdb`, `ip neigh`).
 */
export class Folder {
  readonly path: string;
  readonly #hosts: Files;
  readonly #names: Files;
  /** The file of each id that has names. */
  readonly #lines = new Map<string, Map<string, readonly string[]>>();
  readonly #dirty = new Set<string>();
  #conf: string | undefined;
  #writtenConf: string | undefined;

  /** Reads what is there: of an agent before this one. */
  constructor(path: string) {
    this.path = path;
    this.#hosts = new Files(this.hostsPath);
    this.#names = new Files(this.namesPath);
    this.#writtenConf = readIfThere(join(path, 'conf'));
    for (const [file, text] of this.#names.written) {
      for (const line of text.split('\n').filter((one) => one !== '')) {
        const id = line.split(' # ')[1] ?? '';
        const lines = this.#linesIn(file);
        lines.set(id, [...(lines.get(id) ?? []), line]);
      }
    }
  }

  get hostsPath(): string {
    return join(this.path, 'hosts');
  }

  get namesPath(): string {
    return join(this.path, 'names');
  }

  /** The ids that have names, and those of the hosts. */
  get ids(): { readonly named: string[]; readonly hosts: string[] } {
    const named = [...this.#lines.values()].flatMap((lines) => [...lines.keys()]);
    return { named, hosts: [...this.#hosts.written.keys()] };
  }

  setConf(text: string): void {
    this.#conf = text;
  }

  setHost(id: string, line: string | undefined): void {
    this.#hosts.set(id, line === undefined ? undefined : `${line}\n`);
  }

  setNames(id: string, lines: readonly string[]): void {
    const file = fileOf(id);
    const known = this.#linesIn(file);
    const before = known.get(id) ?? [];
    if (before.length === lines.length && before.every((line, index) => line === lines[index])) {
      return;
    }
    if (lines.length === 0) known.delete(id);
    else known.set(id, lines);
    this.#dirty.add(file);
  }

  #linesIn(file: string): Map<string, readonly string[]> {
    const lines = this.#lines.get(file) ?? new Map<string, readonly string[]>();
    this.#lines.set(file, lines);
    return lines;
  }

  /** Writes what differs. Throws the error of the disk; the next call writes the rest. */
  write(): Written {
    if (this.#writtenConf !== undefined && !existsSync(join(this.path, 'conf'))) this.#forget();
    makeFolder(dirname(this.path));
    makeFolder(this.path);
    for (const file of this.#dirty) {
      const lines = [...this.#linesIn(file).values()].flat();
      this.#names.set(file, lines.length === 0 ? undefined : `${lines.join('\n')}\n`);
    }
    this.#dirty.clear();
    this.#names.write();
    const hosts = this.#hosts.write();
    if (this.#conf === undefined || this.#conf === this.#writtenConf) return { conf: false, hosts };
    replace(join(this.path, 'conf'), this.#conf);
    this.#writtenConf = this.#conf;
    return { conf: true, hosts };
  }

  /** Somebody has removed the folder: all is to be written again. */
  #forget(): void {
    this.#writtenConf = undefined;
    this.#hosts.forget();
    this.#names.forget();
  }

  remove(): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

const fileOf = (id: string): string =>
  String(createHash('md5').update(id).digest().readUInt32BE() % NAME_FILES);

/** Files in a folder that dnsmasq watches. */
class Files {
  readonly #folder: string;
  readonly #written: Map<string, string>;
  readonly #wanted = new Map<string, string | undefined>();

  constructor(folder: string) {
    this.#folder = folder;
    this.#written = new Map(
      namesIn(folder).map((name) => [name, readFileSync(join(folder, name), 'utf8')]),
    );
  }

  get written(): ReadonlyMap<string, string> {
    return this.#written;
  }

  set(name: string, text: string | undefined): void {
    this.#wanted.set(name, text);
  }

  /** None of the files is there any more. */
  forget(): void {
    for (const [name, text] of this.#written) {
      if (!this.#wanted.has(name)) this.#wanted.set(name, text);
    }
    this.#written.clear();
  }

  /** True where a file that was there is gone, or is another. */
  write(): boolean {
    makeFolder(this.#folder);
    let changed = false;
    for (const [name, text] of this.#wanted) {
      const before = this.#written.get(name);
      if (before !== text) {
        changed ||= before !== undefined;
        if (text === undefined) rmSync(join(this.#folder, name), { force: true });
        else replace(join(this.#folder, name), text);
        if (text === undefined) this.#written.delete(name);
        else this.#written.set(name, text);
      }
      this.#wanted.delete(name);
    }
    return changed;
  }
}

/** Whatever the umask of the agent is. */
function makeFolder(path: string): void {
  if (mkdirSync(path, { recursive: true }) !== undefined) chmodSync(path, 0o755);
}

/** dnsmasq passes over names that begin with a dot. */
function replace(path: string, text: string): void {
  const fresh = path.replace(/[^/]+$/, '.$&');
  writeFileSync(fresh, text);
  chmodSync(fresh, 0o644);
  renameSync(fresh, path);
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).filter((name) => !name.startsWith('.'));
  } catch {
    return [];
  }
}

function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}
