// A table of any number of rows of which only those in view are in the document.
//
// It stays a real table for screen readers: rows say which of how many they are.

const ROW = 28;
const SPARE = 6;

export class VirtualTable {
  // columns: {title, text(row), order(row)?, number?, html class name(row)?, action(row)?}
  constructor(root, { columns, label, sort }) {
    this.root = root;
    this.columns = columns;
    this.rows = [];
    this.sort = sort; // {column, down}
    this.table = document.createElement("table");
    const caption = this.table.createCaption();
    caption.className = "hidden-text";
    caption.textContent = label;
    this.headers = this.table.createTHead().insertRow();
    columns.forEach((column, place) => this.addHeader(column, place));
    this.body = this.table.createTBody();
    this.above = this.body.insertRow();
    this.below = this.body.insertRow();
    for (const spacer of [this.above, this.below]) {
      spacer.setAttribute("aria-hidden", "true");
      spacer.insertCell().colSpan = columns.length;
    }
    this.pool = [];
    root.append(this.table);
    root.addEventListener("scroll", () => this.draw());
  }

  addHeader(column, place) {
    const header = document.createElement("th");
    header.scope = "col";
    if (column.number) header.className = "number";
    const button = document.createElement("button");
    button.type = "button";
    button.className = "plain";
    button.textContent = column.title;
    button.addEventListener("click", () => {
      const again = this.sort.column === place;
      this.sort = { column: place, down: again ? !this.sort.down : Boolean(column.number) };
      this.setRows(this.rows);
    });
    header.append(button);
    this.headers.append(header);
  }

  setRows(rows) {
    const { text, order = text } = this.columns[this.sort.column];
    const keyed = rows.map((row) => [order(row), row]);
    const sign = this.sort.down ? -1 : 1;
    keyed.sort(([a], [b]) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -sign : sign));
    this.rows = keyed.map(([, row]) => row);
    this.table.setAttribute("aria-rowcount", rows.length + 1);
    [...this.headers.cells].forEach((cell, place) => {
      if (place === this.sort.column) cell.setAttribute("aria-sort", this.sort.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
    this.draw();
  }

  draw() {
    const view = Math.ceil((this.root.clientHeight || 400) / ROW);
    const most = Math.max(0, this.rows.length - view);
    const first = Math.max(0, Math.min(most, Math.floor(this.root.scrollTop / ROW)) - SPARE);
    const shown = this.rows.slice(first, first + view + 2 * SPARE);
    while (this.pool.length < shown.length) this.pool.push(this.makeRow());
    this.pool.forEach((line, place) => {
      const row = shown[place];
      if (!row) {
        line.element.hidden = true;
        return;
      }
      line.element.hidden = false;
      line.element.setAttribute("aria-rowindex", first + place + 2);
      this.fill(line, row);
    });
    setHeight(this.above, first);
    setHeight(this.below, this.rows.length - first - shown.length);
  }

  makeRow() {
    const element = document.createElement("tr");
    const line = { element, row: null, cells: [] };
    for (const column of this.columns) {
      const cell = document.createElement(column.heads ? "th" : "td");
      if (column.heads) cell.scope = "row";
      let text = cell;
      if (column.swatch) {
        const swatch = document.createElement("span");
        swatch.className = "swatch";
        cell.append(swatch);
        line.swatch = swatch;
      }
      if (column.action) {
        text = document.createElement("button");
        text.type = "button";
        text.className = "plain";
        text.addEventListener("click", () => column.action(line.row));
        cell.append(text);
      }
      element.append(cell);
      line.cells.push({ cell, text });
    }
    this.below.before(element);
    return line;
  }

  fill(line, row) {
    line.row = row;
    this.columns.forEach((column, place) => {
      const { cell, text } = line.cells[place];
      const value = String(column.text(row) ?? "–");
      if (text.textContent !== value) text.textContent = value;
      const name = [column.number ? "number" : "", column.mood?.(row) ?? ""].join(" ").trim();
      if (cell.className !== name) cell.className = name;
      if (column.title_of) cell.title = column.title_of(row) ?? "";
      if (column.swatch) line.swatch.style.background = column.swatch(row);
    });
  }
}

function setHeight(spacer, rows) {
  spacer.hidden = rows <= 0;
  spacer.cells[0].style.height = `${Math.max(0, rows) * ROW}px`;
}
