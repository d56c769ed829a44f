// What the two drawings share: a canvas that stays in view while its region scrolls, and colours.

export class Drawing {
  // `root` scrolls, and holds a canvas and an .extent as high as all rows. `rowHeight` in CSS px.
  constructor(root, rowHeight) {
    this.root = root;
    this.rowHeight = rowHeight;
    this.canvas = root.querySelector("canvas");
    this.extent = root.querySelector(".extent");
    this.pen = this.canvas.getContext("2d");
    this.rows = [];
    this.labelWidth = 150;
    this.size = { width: 0, height: 0 };
    new ResizeObserver(() => this.resize()).observe(root);
    root.addEventListener("scroll", () => this.draw());
  }

  setRows(rows) {
    this.rows = rows;
    const height = Math.max(1, rows.length) * this.rowHeight;
    if (this.height !== height) {
      this.height = height;
      this.extent.style.height = `${height}px`;
      this.resize();
    }
  }

  resize() {
    const width = this.root.clientWidth;
    const most = parseFloat(getComputedStyle(this.root).maxHeight) || 400;
    const height = Math.min(this.height ?? 0, most - 2);
    const scale = devicePixelRatio || 1;
    this.size = { width, height };
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.pen.setTransform(scale, 0, 0, scale, 0, 0);
    this.labelWidth = Math.min(170, Math.max(80, width * 0.16));
    this.draw();
  }

  // Calls drawRow(row, y, index) for the rows in view.
  drawRows() {
    const { pen, size, root, rowHeight } = this;
    pen.clearRect(0, 0, size.width, size.height);
    const first = Math.floor(root.scrollTop / rowHeight);
    const last = Math.min(this.rows.length, Math.ceil((root.scrollTop + size.height) / rowHeight));
    for (let i = first; i < last; i++) this.drawRow(this.rows[i], i * rowHeight - root.scrollTop, i);
    if (!this.rows.length) {
      pen.fillStyle = colours.faint;
      pen.fillText("no device", 8, rowHeight / 2);
    }
  }

  label(text, y, isChosen) {
    const { pen } = this;
    pen.fillStyle = isChosen ? colours.accent : colours.text;
    pen.font = `${isChosen ? "bold " : ""}12px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    pen.save();
    pen.beginPath();
    pen.rect(0, y, this.labelWidth - 6, this.rowHeight);
    pen.clip();
    pen.fillText(text, 6, y + this.rowHeight / 2);
    pen.restore();
  }

  rowAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const index = Math.floor((event.clientY - box.top + this.root.scrollTop) / this.rowHeight);
    return { index, x: event.clientX - box.left };
  }

  reveal(index) {
    const top = index * this.rowHeight;
    const { root, size } = this;
    if (top < root.scrollTop) root.scrollTop = top;
    else if (top + this.rowHeight > root.scrollTop + size.height) root.scrollTop = top + this.rowHeight - size.height;
  }
}

export const colours = {};

// From the style sheet, for the theme that is on now.
export function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["text", "faint", "line", "accent", "good", "bad", "warn", "panel", "load", "free", "bar-text", "bar-light", "bar-sat"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
  hues.clear();
}

const hues = new Map();

// Neighbours in the catalogue get hues far from each other: the golden ratio. Never red, which is
// for what failed.
export function colourOf(model) {
  if (!model) return colours.faint;
  let colour = hues.get(model.index);
  if (!colour) {
    colour = `hsl(${25 + 300 * ((model.index * 0.618034) % 1)} ${colours["bar-sat"]} ${colours["bar-light"]})`;
    hues.set(model.index, colour);
  }
  return colour;
}
