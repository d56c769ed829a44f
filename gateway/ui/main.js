// The live page: connects the stream to what is shown, and controls to both.

import { readColours } from "./canvas.js";
import { Chart } from "./chart.js";
import { Feed } from "./feed.js";
import { Filters } from "./filters.js";
import { Lanes } from "./lanes.js";
import { PageMap } from "./pages.js";
import { Store } from "./store.js";
import { askForKey, keptKey, showModel, showStory } from "./dialogs.js";
import { modelColumns, showRefusals, showTiles, showWorst, workerColumns, workerRows } from "./sections.js";
import { VirtualTable } from "./table.js";

const byId = (id) => document.getElementById(id);
const store = new Store();
const filters = new Filters(() => show());
const lanes = new Lanes(byId("lanes"), store, filters, byId("lanes-says"), byId("lanes-window"));
const pages = new PageMap(byId("pages"), filters, byId("pages-says"));
const chart = new Chart(byId("chart"), byId("chart-text"), store);
const models = new VirtualTable(byId("models"), {
  columns: modelColumns(store, (model) => showModel(model, store)),
  label: "Models",
  sort: { column: 2, down: true },
});
const workers = new VirtualTable(byId("workers"), {
  columns: workerColumns(store),
  label: "Workers",
  sort: { column: 0, down: false },
});
let isPaused = false;

const feed = new Feed("/ui/events", {
  event(name, data) {
    if (name === "snapshot") store.snapshot(data);
    else store.frame(data);
    byId("version").textContent = store.version;
    show();
  },
  state(kind, text) {
    const line = byId("connection");
    line.dataset.state = kind;
    if (line.textContent !== text) line.textContent = text;
  },
  key(why) {
    byId("key").hidden = false;
    askForKey(why, useKey);
  },
});

function useKey(key) {
  feed.key = key;
  feed.connect();
}

// gpu-10 comes after gpu-9, and the order is not that of joining, which is chance.
function byName(a, b) { return a.worker.localeCompare(b.worker, "en", { numeric: true }); }

// Once per event, and after a change of a filter.
function show() {
  if (isPaused) return;
  const shownModels = store.models.filter((model) => filters.model(model, store));
  const shownDevices = store.devices.filter((device) => filters.worker(device)).sort(byName);
  const lately = store.summary(shownModels);
  showTiles(store, lately, shownDevices);
  showRefusals(byId("refusals"), store, lately, filters.hasChoice);
  showWorst(byId("worst"), store, filters, (request) => showStory(request, feed.key));
  models.setRows(shownModels);
  workers.setRows(workerRows(store, filters, shownDevices));
  byId("models-count").textContent = `${shownModels.length} of ${store.models.length}`;
  byId("workers-count").textContent = `${store.devices.length} here, ${store.lost.length} lost`;
  filters.say(shownModels.length, store.models.length, shownDevices.length, store.devices.length);
  lanes.setRows(shownDevices);
  pages.setRows(shownDevices);
  pages.draw();
  chart.draw(shownModels);
}

// Twenty pictures a second are enough for the eye, and leave a laptop cool; for those who want no
// motion, one for each event.
const isCalm = matchMedia("(prefers-reduced-motion: reduce)");
let drawnAt = 0;
function animate(at) {
  if (!isPaused && !document.hidden && at - drawnAt > (isCalm.matches ? 500 : 50) && store.epoch >= 0) {
    drawnAt = at;
    lanes.move(store.now());
  }
  requestAnimationFrame(animate);
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  readColours();
  chart.restyle();
  show();
  lanes.draw();
}

byId("pause").addEventListener("click", (event) => {
  isPaused = !isPaused;
  event.target.setAttribute("aria-pressed", isPaused);
  event.target.textContent = isPaused ? "Go on" : "Pause";
  show();
});
byId("theme").addEventListener("change", (event) => {
  localStorage.setItem("remontoir-theme", event.target.value);
  setTheme(event.target.value);
});
byId("key").addEventListener("click", () => askForKey("", useKey));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(byId("theme").value));
byId("theme").value = localStorage.getItem("remontoir-theme") ?? "auto";
setTheme(byId("theme").value);
requestAnimationFrame(animate);
feed.key = keptKey();
feed.connect();

