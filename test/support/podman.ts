import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { boot } from './systemd.ts';
import { requireTool } from './tools.ts';

const here = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

/** A host with podman and without a registry, in the network namespace of the calling test. */
export interface PodmanHost extends AsyncDisposable {
  /** Runs a script as root of that host does who types it, and returns what it says; throws unless all of it succeeds. */
  readonly shell: (script: string) => string;
}

/** Starts one that has a Debian 12 as `debian:12-slim`. Needs a test's sandbox. */
export async function startPodmanHost(): Promise<PodmanHost> {
  requireTool('podman');
  const folder = mkdtempSync('/run/volt-test-podman-');
  // Not on the tmpfs: it has layers of some hundred megabytes.
  const storage = mkdtempSync(join(tmpdir(), 'volt-test-podman-'));
  const confs = {
    CONTAINERS_CONF: join(folder, 'containers.conf'),
    CONTAINERS_STORAGE_CONF: join(folder, 'storage.conf'),
  };
  writeFileSync(confs.CONTAINERS_CONF, CONTAINERS_CONF.replaceAll('FOLDER', folder));
  writeFileSync(
    confs.CONTAINERS_STORAGE_CONF,
    `[storage]\ndriver = "overlay"\ngraphroot = "${storage}"\nrunroot = "${folder}/runroot"\n`,
  );
  const host = await boot({
    folder,
    words: ['sh', here('podman.sh'), folder],
    what: 'podman',
    env: { ...confs, BUILDAH_ISOLATION: 'chroot' },
    limitSeconds: 850,
    isUp: ({ run }) => run('test', '-e', join(folder, 'ready')).status === 0,
  });
  const tar = join(storage, 'base.tar');
  host.shell(`sh ${here('debian-base.sh')} ${folder}/base >${tar}
    podman import --quiet ${tar} localhost/debian:12-slim; rm ${tar}`);
  return {
    shell: host.shell,
    async [Symbol.asyncDispose]() {
      host.shell('podman rm --all --force --time 20; umount /etc /var/lib');
      await host[Symbol.asyncDispose]();
      rmSync(storage, { recursive: true, force: true });
    },
  };
}

// runc, since crun wants to raise limits, and podman's own limits are higher than those of a machine may be.
const CONTAINERS_CONF = `[containers]
netns = "host"
pids_limit = 0
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
tmp_dir = "FOLDER/tmp"
`;
