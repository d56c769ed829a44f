// The lanes of each device as a moving Gantt chart: EXEC above, LOAD below.

import { Drawing, colourOf, colours } from "./canvas.js";
import { EXEC, LOAD } from "./store.js";

const ROW = 34, EXEC_TOP = 3, EXEC_HEIGHT = 18, LOAD_TOP = 23, LOAD_HEIGHT = 8;
const WINDOWS = [1, 3, 10, 30];

export class Lanes extends Drawing {
  // `view` has isChosen(model) and hasChoice: what filters leave; `says` an output for words.
  constructor(root, store, view, says, select) {
    super(root, ROW);
    this.store = store;
    this.view = view;
    this.says = says;
    this.select = select;
    this.chosen = 0;
    this.bar = null;
    this.end = 0;
    select.addEventListener("change", () => this.draw());
    root.addEventListener("keydown", (event) => this.onKey(event));
    root.addEventListener("mousemove", (event) => this.onPoint(event));
    root.addEventListener("mouseleave", () => { if (!this.isKeyed) this.say(null); });
  }

  get window() { return Number(this.select.value) * 1e6; }

  // The newest bars are as old as the gateway's interval: the chart ends there, and moves evenly.
  move(now) {
    this.end = now - this.store.interval * 1.3;
    this.draw();
  }

  draw() {
    this.drawRows();
    this.axis();
  }

  x(at) {
    return this.labelWidth + (at - this.end + this.window) / this.window * (this.size.width - this.labelWidth);
  }

  at(x) {
    return this.end - this.window + (x - this.labelWidth) / (this.size.width - this.labelWidth) * this.window;
  }

  drawRow(device, y, index) {
    const { pen, size } = this;
    const isChosen = index === this.chosen && document.activeElement === this.root;
    pen.fillStyle = colours.free;
    pen.fillRect(this.labelWidth, y + EXEC_TOP, size.width - this.labelWidth, EXEC_HEIGHT);
    pen.fillRect(this.labelWidth, y + LOAD_TOP, size.width - this.labelWidth, LOAD_HEIGHT);
    pen.save();
    pen.beginPath();
    pen.rect(this.labelWidth, y, size.width - this.labelWidth, ROW);
    pen.clip();
    this.drawBars(device.lanes[EXEC], y + EXEC_TOP, EXEC_HEIGHT);
    this.drawBars(device.lanes[LOAD], y + LOAD_TOP, LOAD_HEIGHT);
    pen.restore();
    this.label(device.worker, y, isChosen);
  }

  drawBars(bars, y, height) {
    const { pen } = this;
    const from = this.end - this.window;
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    for (let i = bars.length - 1; i >= 0 && bars[i].end > from; i--) {
      const bar = bars[i];
      if (bar.begin > this.end) continue;
      const x = this.x(bar.begin);
      const width = Math.max(1, this.x(bar.end) - x - 0.5);
      pen.globalAlpha = this.view.hasChoice && !this.view.isChosen(bar.model) ? 0.18 : Math.max(0.35, bar.busy / Math.max(1, bar.end - bar.begin));
      pen.fillStyle = bar.ok ? colourOf(bar.model) : colours.bad;
      pen.fillRect(x, y, width, height);
      if (height === EXEC_HEIGHT && width > 34 && bar.model) {
        pen.globalAlpha = 1;
        pen.fillStyle = colours["bar-text"];
        pen.save();
        pen.beginPath();
        pen.rect(x, y, width, height);
        pen.clip();
        pen.fillText(bar.model.name, x + 3, y + height / 2 + 1);
        pen.restore();
      }
      if (bar === this.bar) {
        pen.globalAlpha = 1;
        pen.strokeStyle = colours.text;
        pen.strokeRect(x, y, width, height);
      }
    }
    pen.globalAlpha = 1;
  }

  axis() {
    const { pen, size } = this;
    const step = this.window / (size.width > 700 ? 10 : 5);
    pen.strokeStyle = colours.line;
    pen.globalAlpha = 0.5;
    for (let at = Math.ceil((this.end - this.window) / step) * step; at < this.end; at += step) {
      const x = Math.round(this.x(at)) + 0.5;
      pen.beginPath();
      pen.moveTo(x, 0);
      pen.lineTo(x, size.height);
      pen.stroke();
    }
    pen.globalAlpha = 1;
  }

  find(device, lane, at) {
    const near = (this.window / this.size.width) * 2;
    return device?.lanes[lane].findLast((bar) => bar.begin - near <= at && at <= bar.end + near) ?? null;
  }

  onPoint(event) {
    const { index, x } = this.rowAt(event);
    const device = this.rows[index];
    const inRow = (event.clientY - this.canvas.getBoundingClientRect().top + this.root.scrollTop) % ROW;
    const lane = inRow < LOAD_TOP ? EXEC : LOAD;
    this.isKeyed = false;
    this.say(x > this.labelWidth ? this.find(device, lane, this.at(x)) : null, device, lane);
  }

  onKey(event) {
    const device = this.rows[this.chosen];
    const step = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (step) {
      this.chosen = Math.max(0, Math.min(this.rows.length - 1, this.chosen + step));
      this.reveal(this.chosen);
      this.sayDevice(this.rows[this.chosen]);
    } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      const bars = device?.lanes[EXEC].filter((bar) => bar.begin <= this.end) ?? [];
      let place = bars.indexOf(this.bar);
      place = place < 0 ? bars.length - 1 : place + (event.key === "ArrowLeft" ? -1 : 1);
      this.isKeyed = true;
      this.say(bars[Math.max(0, Math.min(bars.length - 1, place))] ?? null, device, EXEC);
    } else if ("+-−".includes(event.key)) {
      const place = WINDOWS.indexOf(Number(this.select.value)) + (event.key === "+" ? -1 : 1);
      this.select.value = WINDOWS[Math.max(0, Math.min(WINDOWS.length - 1, place))];
    } else return;
    event.preventDefault();
    this.draw();
  }

  sayDevice(device) {
    if (!device) return;
    const [exec, load] = [EXEC, LOAD].map((lane) => Math.round(100 * device.busy(lane, this.end - this.window, this.end)));
    this.bar = null;
    this.says.textContent = `${device.worker}: ${exec} % executing, ${load} % loading in this window`;
  }

  say(bar, device, lane) {
    if (bar === this.bar && bar) return;
    this.bar = bar;
    if (!bar) {
      this.says.textContent = "\u00a0";
      return;
    }
    const what = lane === EXEC ? "EXEC" : "LOAD";
    const rows = bar.rows ? `, ${bar.rows} row${bar.rows > 1 ? "s" : ""}` : "";
    const joined = bar.actions > 1 ? `, ${bar.actions} joined for the picture` : "";
    this.says.textContent = `${device.worker} ${what} ${bar.model?.name ?? "several models"}: ${(bar.busy / 1e3).toFixed(2)} ms${rows}${joined}${bar.ok ? "" : ", failed"}, ${((this.store.at - bar.end) / 1e6).toFixed(1)} s ago`;
  }
}
