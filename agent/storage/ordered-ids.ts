/** Ids in order. Paging through them works even if ids are added or removed meanwhile. */
export class OrderedIds {
  readonly #ids: string[] = [];

  add(id: string): void {
    const place = this.#placeOf(id);
    if (this.#ids[place] !== id) this.#ids.splice(place, 0, id);
  }

  delete(id: string): void {
    const place = this.#placeOf(id);
    if (this.#ids[place] === id) this.#ids.splice(place, 1);
  }

  /** The next id after `id`, whether `id` itself is there or not; the first one after an empty `id`. */
  after(id: string): string | undefined {
    const place = this.#placeOf(id);
    return this.#ids[this.#ids[place] === id ? place + 1 : place];
  }

  /** The index of the id, or where it would have to be inserted. */
  #placeOf(id: string): number {
    let [from, to] = [0, this.#ids.length];
    while (from < to) {
      const middle = Math.floor((from + to) / 2);
      if ((this.#ids[middle] ?? '') < id) from = middle + 1;
      else to = middle;
    }
    return from;
  }
}
