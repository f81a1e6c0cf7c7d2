// Whatever is shown came over the bus. It becomes text here, and never markup; the server's policy (Trusted Types)
// refuses anything else.

/** The element of the page with this id. */
export const byId = (id) => document.getElementById(id);

/**
 * A new element. `children` are elements or text; what is null or '' is left out. Of `attributes` those that are null
 * are left out.
 */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export const svg = (name, attributes = {}, ...children) =>
  filled(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null) element.setAttribute(key, String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== ''));
  return element;
}

/** Text that is only put there if it is another: a screen reader would say it again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Rows of a list or a table, each with a key, what it shows as one text, and how it is made. A row stays the same
 * element, and one that shows the same is left alone, so that focus and selection outlive a refresh.
 */
export function setRows(parent, rows) {
  const before = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const wanted = rows.map(({ key, content, make }) => {
    const kept = before.get(key);
    if (kept?.dataset.content === content) return kept;
    const made = make();
    const row = kept ?? made;
    row.dataset.key = key;
    row.dataset.content = content;
    if (kept === undefined) return row;
    const hadFocus = kept.contains(document.activeElement);
    kept.replaceChildren(...made.childNodes);
    if (hadFocus) kept.querySelector('a, button')?.focus({ preventScroll: true });
    return row;
  });
  setChildren(parent, wanted);
}

/** As replaceChildren, but what is there already is not taken out and put back: it would lose the focus. */
export function setChildren(parent, wanted) {
  const stays = new Set(wanted);
  for (const child of [...parent.children]) if (!stays.has(child)) child.remove();
  wanted.forEach((child, place) => {
    const there = parent.children[place] ?? null;
    if (there !== child) parent.insertBefore(child, there);
  });
}
