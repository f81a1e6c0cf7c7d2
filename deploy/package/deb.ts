import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  cpSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { gzipSync } from 'node:zlib';
import packageJson from '../../package.json' with { type: 'json' };
import { dropDeadLinks } from './links.ts';

// Makes the Debian package of what build.ts has left in dist/: compiled JavaScript, the libraries and the Node that
// package-lock.json pins, and what a host needs around them. The same commit gives the same bytes.

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const LIBRARY = 'usr/lib/volt-network';
const DOCUMENTATION = 'usr/share/doc/volt-network';
const MOST_BYTES = 50_000_000;
/** Debian's name of a machine type, and Node's. */
const CPU = { amd64: 'x64', arm64: 'arm64' } as const;

const { values: flags } = parseArgs({
  options: {
    arch: { type: 'string', multiple: true, default: ['amd64', 'arm64'] },
    /** For a test of upgrades. */
    version: { type: 'string', default: `${packageJson.version}-1` },
    /** Of dpkg-deb: `xz`, or quicker and larger. */
    compression: { type: 'string', default: 'xz' },
    to: { type: 'string', default: ROOT },
  },
});
const { version } = flags;
const seconds = Number(
  process.env['SOURCE_DATE_EPOCH'] ??
    execFileSync('git', ['log', '-1', '--format=%ct'], { cwd: ROOT, encoding: 'utf8' }),
);
const date = new Date(seconds * 1000);
const MAINTAINER = 'Volt Unified Networking <volt-network@users.noreply.example.org>';

function make(arch: keyof typeof CPU): void {
  const folder = mkdtempSync(join(tmpdir(), 'volt-network-deb-'));
  try {
    putProgram(folder, arch);
    putSystem(folder);
    putDocumentation(folder);
    putControl(folder, arch);
    settle(folder);
    const file = join(flags.to, `volt-network_${version}_${arch}.deb`);
    const build = ['--root-owner-group', `-Z${flags.compression}`, '--build', folder, file];
    execFileSync('dpkg-deb', build, {
      stdio: ['ignore', 'ignore', 'inherit'],
      env: { ...process.env, SOURCE_DATE_EPOCH: String(seconds) },
    });
    if (lstatSync(file).size > MOST_BYTES) throw new Error(`${file} has more than 50 MB`);
    process.stdout.write(`${file}\n`);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function putProgram(folder: string, arch: keyof typeof CPU): void {
  const library = join(folder, LIBRARY);
  for (const name of ['agent', 'ipam-store', 'native', 'protocol', 'deploy/bin', 'package.json']) {
    cpSync(join(ROOT, 'dist', name), join(library, name), {
      recursive: true,
      filter: (file) => !/\.(d\.ts|map)$/.test(file),
    });
  }
  cpSync(installModules(arch), join(library, 'node_modules'), { recursive: true });
  mkdirSync(join(folder, 'usr/bin'), { recursive: true });
  for (const name of ['voltnet', 'volt-network-agent']) {
    symlinkSync(`../lib/volt-network/deploy/bin/${name}`, join(folder, 'usr/bin', name));
  }
}

/** The libraries for another machine type as for this one, as the lock file pins them; without what is not run. */
function installModules(arch: keyof typeof CPU): string {
  const folder = join(ROOT, '.cache/deb', arch);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  for (const name of ['package.json', 'package-lock.json', '.npmrc']) {
    cpSync(join(ROOT, name), join(folder, name));
  }
  const target = ['--os=linux', '--libc=glibc', `--cpu=${CPU[arch]}`];
  const quiet = ['--no-audit', '--no-fund', '--loglevel=error', '--prefer-offline'];
  execFileSync(
    'npm',
    ['ci', '--omit=dev', '--include=optional', '--ignore-scripts', ...target, ...quiet],
    { cwd: folder, stdio: ['ignore', 'ignore', 'inherit'] },
  );
  const modules = join(folder, 'node_modules');
  const node = `node-linux-${CPU[arch]}/bin/node`;
  for (const name of filesBelow(modules)) {
    if (name !== node && !isRun(name)) rmSync(join(modules, name));
  }
  removeEmpty(modules);
  return modules;
}

/** Whether Node could load a file of a library; or what it may be passed on under. */
function isRun(name: string): boolean {
  if (NOT_RUN.test(name)) return false;
  return /\.([cm]?js|json|node|proto)$/.test(name) || /(^|\/)(LICEN[CS]E|NOTICE)[^/]*$/i.test(name);
}

const NOT_RUN =
  /(^|\/)(\.|musl_|include\/|share\/|bin\/|examples\/|tests?\/|bin\.m?js$|(cnoke|trampolines)\.cjs$)/;

function removeEmpty(folder: string): void {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (entry.isDirectory()) removeEmpty(join(folder, entry.name));
  }
  if (readdirSync(folder).length === 0) rmSync(folder, { recursive: true });
}

/** Files and links below a folder, in the order of their names. */
const filesBelow = (folder: string): string[] =>
  readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => !lstatSync(join(folder, name)).isDirectory())
    .toSorted();

function putSystem(folder: string): void {
  const copy = (from: string, to: string): void => {
    cpSync(join(ROOT, 'deploy', from), join(folder, to), { recursive: true });
  };
  for (const name of ['volt-network-agent.service', 'volt-network-dnsmasq@.service']) {
    copy(`systemd/${name}`, `usr/lib/systemd/system/${name}`);
  }
  for (const name of ['10-volt-vmm.network', '90-volt-vmm.link']) {
    copy(`systemd/${name}`, `usr/lib/systemd/network/${name}`);
  }
  copy('debian/sysusers.conf', 'usr/lib/sysusers.d/volt-network.conf');
  copy('debian/tmpfiles.conf', 'usr/lib/tmpfiles.d/volt-network.conf');
  copy('debian/lintian-overrides', 'usr/share/lintian/overrides/volt-network');
  copy('agent.json', 'etc/volt/network/agent.json');
  for (const name of [
    'nats',
    'networks',
    'observability',
    'redis',
    'systemd/tighter',
    'systemd/volt0.netdev',
  ]) {
    copy(name, join(DOCUMENTATION, 'examples', name));
  }
  copy('systemd/volt0.network', join(DOCUMENTATION, 'examples/systemd/volt0.network'));
}

function putDocumentation(folder: string): void {
  const put = (name: string, text: string): void => {
    mkdirSync(dirname(join(folder, name)), { recursive: true });
    writeFileSync(join(folder, name), name.endsWith('.gz') ? zipped(text) : text);
  };
  // Manual pages and completions.
  execFileSync(process.execPath, [
    join(ROOT, 'agent/cli/write-documents.ts'),
    join(folder, 'usr/share'),
    date.toISOString().slice(0, 10),
  ]);
  const manual = join(folder, 'usr/share/man');
  for (const name of filesBelow(manual)) {
    const text = readFileSync(join(manual, name), 'utf8');
    rmSync(join(manual, name));
    put(join('usr/share/man', `${name}.gz`), text);
  }
  cpSync(join(ROOT, 'dist/docs'), join(folder, DOCUMENTATION, 'docs'), { recursive: true });
  for (const name of ['README.md', 'SECURITY.md']) put(join(DOCUMENTATION, name), read(name));
  dropDeadLinks(join(folder, DOCUMENTATION));
  put(join(DOCUMENTATION, 'copyright'), read('deploy/debian/copyright'));
  put(join(DOCUMENTATION, 'changelog.gz'), read('CHANGELOG.md'));
  const entry = [
    `volt-network (${version}) unstable; urgency=medium`,
    '  * What is new is in changelog.gz beside this file.',
    ` -- ${MAINTAINER}  ${date.toUTCString().replace('GMT', '+0000')}`,
  ];
  put(join(DOCUMENTATION, 'changelog.Debian.gz'), `${entry.join('\n\n')}\n`);
}

const read = (name: string): string => readFileSync(join(ROOT, name), 'utf8');

/** As `gzip -n9`: without name and time. */
const zipped = (text: string): Buffer => gzipSync(text, { level: 9 });

// libc, libstdc++ and libgcc: of Node and koffi. netbase has /etc/protocols, without which libnftables knows no protocol by
// its name. passwd has groupdel.
const DEPENDS = [
  ...['libc6 (>= 2.28)', 'libgcc-s1', 'libstdc++6 (>= 9)', 'libnftables1', 'netbase', 'passwd'],
  'systemd | systemd-standalone-sysusers',
];

function putControl(folder: string, arch: string): void {
  const control = join(folder, 'DEBIAN');
  const files = filesBelow(folder).filter(
    (name) => !lstatSync(join(folder, name)).isSymbolicLink(),
  );
  const bytes = files.map((name) => Math.ceil(lstatSync(join(folder, name)).size / 1024));
  mkdirSync(control);
  const put = (name: string, lines: readonly string[]): void => {
    writeFileSync(join(control, name), `${lines.join('\n')}\n`);
  };
  put('control', [
    'Package: volt-network',
    `Version: ${version}`,
    `Architecture: ${arch}`,
    `Maintainer: ${MAINTAINER}`,
    `Installed-Size: ${bytes.reduce((sum, one) => sum + one, 0)}`,
    'Section: net',
    'Priority: optional',
    `Depends: ${DEPENDS.join(', ')}`,
    // The kernel with tun, veth, bridge and nf_tables as modules; a host that is a container has that of its own host.
    // dnsmasq for networks with DHCP or names.
    `Recommends: linux-image-${arch} (>= 5.15) | linux-image-generic, kmod, dnsmasq-base, dnsmasq-utils`,
    'Suggests: nats-server, redis-server (>= 5:7.0)',
    'Description: network agent for virtual machines and containers',
    ' One agent per host gives virtual machines and containers their network: a TAP',
    ' or a veth pair on a bridge, with an address that nobody else in the fleet has.',
    ' Requests come over NATS, addresses are leased in Redis, and the agent itself',
    ' does the work in the kernel.',
    ' .',
    ' This package has the agent (volt-network-agent), the command line (voltnet)',
    ' and the Node.js that both run with.',
  ]);
  put('conffiles', ['/etc/volt/network/agent.json']);
  put(
    'md5sums',
    files.map((name) => {
      const sum = createHash('md5')
        .update(readFileSync(join(folder, name)))
        .digest('hex');
      return `${sum}  ${name}`;
    }),
  );
  for (const name of ['postinst', 'prerm', 'postrm']) {
    cpSync(join(ROOT, 'deploy/debian', name), join(control, name));
  }
}

/** Modes and times: those of the package, whatever those of the checkout and the builder's mask are. */
function settle(folder: string): void {
  const isProgram =
    /^DEBIAN\/(postinst|prerm|postrm)$|\/deploy\/bin\/|\/node-linux-\w+\/bin\/node$/;
  const names = readdirSync(folder, { recursive: true, encoding: 'utf8' }).toSorted().toReversed();
  for (const name of [...names, '']) {
    const path = join(folder, name);
    const about = lstatSync(path);
    if (about.isSymbolicLink()) continue;
    chmodSync(path, about.isDirectory() || isProgram.test(name) ? 0o755 : 0o644);
    utimesSync(path, date, date);
  }
}

for (const arch of flags.arch) {
  if (arch !== 'amd64' && arch !== 'arm64') throw new Error(`no package for ${arch}`);
  make(arch);
}
