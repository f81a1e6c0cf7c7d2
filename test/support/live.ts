import { enterSandbox } from './sandbox.ts';

// Set up before every live test file (vitest.config.ts), which has a process of its own.
enterSandbox();
