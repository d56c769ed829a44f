// Goodput and misses over the last minute, drawn by uPlot, and the same in a sentence.

import { colours } from "./canvas.js";

const SAY_EVERY_MS = 10e3;

export class Chart {
  constructor(root, text, store) {
    this.root = root;
    this.text = text;
    this.store = store;
    this.models = [];
    this.saidAt = 0;
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(root);
  }

  size() { return { width: Math.max(200, this.root.clientWidth), height: 210 }; }

  // Colours are of the theme: uPlot is made anew.
  restyle() {
    this.plot?.destroy();
    const axis = { stroke: colours.faint, grid: { stroke: colours.line, width: 1 }, ticks: { stroke: colours.line } };
    const clock = (at) => new Date(at * 1e3).toLocaleTimeString([], { hour12: false });
    const line = (label, colour, dash) => ({ label, stroke: colour, width: 2, dash, points: { show: false }, value: (_, n) => (n === null ? "–" : n.toFixed(1)) });
    this.plot = new uPlot({
      ...this.size(),
      scales: { y: { range: (_, low, high) => [0, Math.max(1, high * 1.1)] } },
      axes: [{ ...axis, space: 90, values: (_, marks) => marks.map(clock) }, { ...axis, size: 60 }],
      series: [
        { value: (_, at) => (at === null ? "–" : clock(at)) },
        line("in time", colours.good),
        line("refused", colours.warn, [6, 3]),
        line("late or failed", colours.bad, [2, 3]),
      ],
      padding: [null, 30, null, null], // half of the last instant's text
      cursor: { y: false },
      legend: { live: false },
    }, this.data(), this.root);
  }

  data() {
    const { at, goodput, refused, late } = this.store.rates(this.models);
    return [at, goodput, refused, late];
  }

  draw(models) {
    this.models = models;
    const data = this.data();
    this.plot.setData(data);
    if (performance.now() - this.saidAt < SAY_EVERY_MS) return;
    this.saidAt = performance.now();
    const [at, ...lines] = data;
    if (!at.length) return;
    const [goodput, refused, late] = lines.map((line) => line.at(-1).toFixed(1));
    const most = Math.max(...lines[0]).toFixed(1);
    this.text.textContent = `${goodput} requests per second in time, at most ${most} in the last ${Math.round(at.at(-1) - at[0])} seconds; ${refused} refused, ${late} late or failed.`;
  }
}
