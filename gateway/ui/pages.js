// The page map: one row per cache, its pages in order of the models that hold them.

import { Drawing, colourOf, colours } from "./canvas.js";

const ROW = 24, TOP = 3, HEIGHT = 18;

export class PageMap extends Drawing {
  constructor(root, view, says) {
    super(root, ROW);
    this.view = view;
    this.says = says;
    this.layouts = new Map(); // device → {version, parts}
    this.chosen = 0;
    root.addEventListener("mousemove", (event) => {
      const { index, x } = this.rowAt(event);
      this.say(this.rows[index], x);
    });
    root.addEventListener("keydown", (event) => {
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.chosen = Math.max(0, Math.min(this.rows.length - 1, this.chosen + step));
      this.reveal(this.chosen);
      this.sayDevice(this.rows[this.chosen]);
      this.draw();
    });
  }

  draw() { this.drawRows(); }

  // [{model, state, pages, first}]; the models with most pages first, those on their way last.
  layout(device) {
    const known = this.layouts.get(device.worker);
    if (known?.version === device.version && known.device === device) return known.parts;
    const parts = [...device.holds].map(([model, held]) => ({ model, ...held }));
    parts.sort((a, b) => (a.state === 2 ? 0 : 1) - (b.state === 2 ? 0 : 1) || b.pages - a.pages || a.model.index - b.model.index);
    let first = 0;
    for (const part of parts) {
      part.first = first;
      first += part.pages;
    }
    this.layouts.set(device.worker, { version: device.version, device, parts });
    return parts;
  }

  drawRow(device, y, index) {
    const { pen } = this;
    const width = this.size.width - this.labelWidth;
    const perPage = width / Math.max(1, device.total_pages);
    pen.fillStyle = colours.free;
    pen.fillRect(this.labelWidth, y + TOP, width, HEIGHT);
    for (const part of this.layout(device)) {
      const x = this.labelWidth + part.first * perPage;
      const wide = part.pages * perPage;
      pen.globalAlpha = this.view.hasChoice && !this.view.isChosen(part.model) ? 0.18 : 1;
      pen.fillStyle = colourOf(part.model);
      // On its way in or out: half the height, so that it shows without colour too.
      pen.fillRect(x, y + (part.state === 2 ? TOP : TOP + HEIGHT / 2), Math.max(0.7, wide - (wide > 3 ? 1 : 0)), part.state === 2 ? HEIGHT : HEIGHT / 2);
      if (wide > 60) {
        pen.globalAlpha = 1;
        pen.fillStyle = colours["bar-text"];
        pen.font = "11px system-ui, sans-serif";
        pen.save();
        pen.beginPath();
        pen.rect(x, y, wide - 4, ROW);
        pen.clip();
        pen.fillText(part.model.name, x + 3, y + ROW / 2 + 1);
        pen.restore();
      }
    }
    pen.globalAlpha = 1;
    this.label(device.worker, y, index === this.chosen && document.activeElement === this.root);
  }

  say(device, x) {
    if (!device || x < this.labelWidth) return;
    const page = (x - this.labelWidth) / (this.size.width - this.labelWidth) * device.total_pages;
    const part = this.layout(device).find((held) => page >= held.first && page < held.first + held.pages);
    if (!part) return this.sayDevice(device);
    const state = ["", "loading", "resident", "evicting"][part.state];
    this.says.textContent = `${device.worker}: ${part.model.name} ${state}, ${part.pages} of ${device.total_pages} pages`;
  }

  sayDevice(device) {
    if (!device) return;
    const resident = device.pages(2);
    const [first] = this.layout(device);
    const most = first ? `; most by ${first.model.name} (${first.pages})` : "";
    this.says.textContent = `${device.worker}: ${resident} of ${device.total_pages} pages hold ${device.holds.size} models, ${device.figures[1] ?? "?"} are free${most}`;
  }
}
