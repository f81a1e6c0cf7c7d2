// The file that deploy/bin/volt-network-agent runs.
import { flushCompileCache } from 'node:module';
import { useCompileCache } from './compile-cache.js';

/** By then all is loaded. Node itself writes the cache when a process ends, but not when it is killed. */
const FLUSH_MS = 30_000;

useCompileCache();
setTimeout(flushCompileCache, FLUSH_MS).unref();
await import('#agent/main.ts');
