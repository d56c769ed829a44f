// What the reader wants to see: kept in the address, so that it can be sent to somebody.

import { stateOf } from "./store.js";

const FIELDS = ["model", "state", "worker"];

export class Filters {
  constructor(onChange) {
    const given = new URLSearchParams(location.hash.slice(1));
    this.inputs = Object.fromEntries(FIELDS.map((name) => [name, document.getElementById(`filter-${name}`)]));
    this.says = document.getElementById("filter-says");
    for (const name of FIELDS) {
      this.inputs[name].value = given.get(name) ?? "";
      this.inputs[name].addEventListener("input", () => this.changed(onChange));
    }
    document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
    document.getElementById("filter-clear").addEventListener("click", () => {
      for (const name of FIELDS) this.inputs[name].value = "";
      this.changed(onChange);
    });
    this.read();
  }

  changed(onChange) {
    this.read();
    const kept = new URLSearchParams(FIELDS.filter((name) => this.inputs[name].value).map((name) => [name, this.inputs[name].value]));
    history.replaceState(null, "", kept.size ? `#${kept}` : location.pathname);
    onChange();
  }

  read() {
    this.matchesModel = matcher(this.inputs.model.value);
    this.matchesWorker = matcher(this.inputs.worker.value);
    this.state = this.inputs.state.value;
    this.hasChoice = Boolean(this.inputs.model.value.trim() || this.state);
    this.chosen = new Set();
  }

  model(model, store) {
    const isChosen = this.matchesModel(model.name) && this.hasState(model, store);
    if (isChosen) this.chosen.add(model.name);
    else this.chosen.delete(model.name);
    return isChosen;
  }

  hasState(model, store) {
    if (!this.state) return true;
    if (this.state === "missing") return store.lately(model).missed > 0;
    return stateOf(model) === this.state;
  }

  // As of the last look through all models.
  isChosen(model) { return model !== null && this.chosen.has(model.name); }

  worker(device) { return this.matchesWorker(device.worker) || this.matchesWorker(device.kind); }

  lostWorker(name) { return this.matchesWorker(name); }

  say(models, allModels, workers, allWorkers) {
    const text = this.hasChoice || this.inputs.worker.value.trim()
      ? `${models} of ${allModels} models, ${workers} of ${allWorkers} devices`
      : "";
    if (this.says.textContent !== text) this.says.textContent = text;
  }
}

// A part of the name, or a pattern with * and ?, as in the tenants file. Capitals do not matter.
function matcher(text) {
  const wanted = text.trim().toLowerCase();
  if (!/[*?]/.test(wanted)) return (name) => name.toLowerCase().includes(wanted);
  const escaped = wanted.replace(/[.+^${}()|[\]\\]/g, "\\$&").replaceAll("*", ".*").replaceAll("?", ".");
  const pattern = new RegExp(`^${escaped}$`);
  return (name) => pattern.test(name.toLowerCase());
}
