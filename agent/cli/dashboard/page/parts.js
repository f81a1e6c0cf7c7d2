import { el } from './dom.js';
import { age } from './format.js';

/** A link that shows the attachments of a host or a network. */
export const filterLink = (name, value) =>
  el('a', { href: `#/?${new URLSearchParams({ [name]: value })}` }, value);

/** Where an attachment has its page. */
export const attachmentHref = ({ host, network, id }) =>
  `#/attachment/${[host, network, id].map(encodeURIComponent).join('/')}`;

/** Why what is shown is not of now; '' where it is. */
export function asOf({ asOf: time, problem }) {
  if (problem === null) return '';
  const reason = `${problem.code}: ${problem.message}`;
  return time === null ? reason : `as it was ${age(time)} ago, ${reason}`;
}

/** Puts the values behind the first option, "All", of a select. What is chosen stays chosen. */
export function setOptions(select, values) {
  const sorted = values.toSorted();
  const chosen = select.value;
  if (chosen !== '' && !sorted.includes(chosen)) sorted.push(chosen);
  const there = [...select.options].slice(1).map(({ value }) => value);
  if (JSON.stringify(there) === JSON.stringify(sorted)) return;
  select.replaceChildren(
    select.options[0],
    ...sorted.map((value) => el('option', { value }, value)),
  );
  select.value = chosen;
}
