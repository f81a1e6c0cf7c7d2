import { detectResources, resourceAttributesEnvDetector } from '@opentelemetry/resources';
import { redacted } from '#protocol/secrets.ts';
import type { TelemetryOptions } from './telemetry.ts';

const VARIABLE = 'OTEL_RESOURCE_ATTRIBUTES';

/**
 * Puts into the environment who exports, for all SDKs to read there. What the operator says of the host or the service
 * wins.
 */
export function describeAgent({ env, host, version, log }: TelemetryOptions): void {
  // The SDK drops all of the variable for one pair that is none: then the host would have no name.
  const given = env[VARIABLE]?.trim() ?? '';
  const read = detectResources({ detectors: [resourceAttributesEnvDetector] }).attributes;
  const isRead = Object.keys(read).length > 0;
  if (given !== '' && !isRead) {
    log.warn({}, `${VARIABLE} is left out: it must have the form key=value,key=value`);
  }
  const own = `service.name=volt-network-agent,host.name=${host},service.version=${version}`;
  env[VARIABLE] = isRead ? `${own},${given}` : own;
  // The words of the command line are exported, too, and an address among them may hold a password.
  process.argv = process.argv.map(redacted);
}
