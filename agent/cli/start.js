// The file that deploy/bin/voltnet runs.
import { useCompileCache } from '../compile-cache.js';

useCompileCache();
await import('#agent/cli/voltnet.ts');
