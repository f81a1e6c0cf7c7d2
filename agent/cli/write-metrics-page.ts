import { writeFileSync } from 'node:fs';
import { metricsPage } from './metrics-page.ts';

// Run after a change of the table of metrics.

writeFileSync(new URL('../../docs/metrics.md', import.meta.url), metricsPage());
