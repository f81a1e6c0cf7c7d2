import { join } from 'node:path';
import { rolldown } from 'rolldown';

// Agent and command line load their code and their libraries from some files in place of six hundred: finding and opening
// those takes longer than all else that a start does.

/** What stays a file of its own: what finds others beside it, and the file of ours that says which version this is. */
const isApart = (name: string, importer = ''): boolean =>
  ['koffi', '@opentelemetry/sdk-node'].includes(name) ||
  (name.endsWith('/package.json') && !importer.includes('/node_modules/'));

/**
 * Puts bundles in the place of the compiled files that `agent/start.js` and `agent/cli/start.js` load. What threads,
 * processes and users of the package load stays as it is.
 */
export async function bundlePrograms({ folder, modules }: Where): Promise<void> {
  const agent = join(folder, 'agent');
  const bundle = await rolldown({
    input: { main: join(agent, 'main.js'), 'cli/voltnet': join(agent, 'cli/voltnet.js') },
    platform: 'node',
    external: isApart,
    resolve: { modules: [modules] },
    // Whatever it is, the bundle would lack something.
    onLog: (_level, { message }) => {
      throw new Error(message);
    },
  });
  await bundle.write({
    dir: agent,
    format: 'esm',
    entryFileNames: '[name].js',
    chunkFileNames: 'chunks/[name]-[hash].js',
  });
  await bundle.close();
}

interface Where {
  /** With the compiled files. */
  readonly folder: string;
  /** `node_modules` with their libraries. */
  readonly modules: string;
}
