// The stream of server-sent events, read by fetch, since an EventSource cannot send an API key.
//
// Owns the connection: it connects again by itself, and says what became of it. Never reads what
// the events mean.

const FIRST_DELAY_MS = 1000;
const LONGEST_DELAY_MS = 15000;

export class Feed {
  // `on` has: event(name, data), state(kind, text), key(why) where an API key is needed.
  constructor(url, on) {
    this.url = url;
    this.on = on;
    this.key = null;
    this.delay = FIRST_DELAY_MS;
    this.stop = null;
  }

  async connect() {
    this.stop?.abort();
    const stop = new AbortController();
    this.stop = stop;
    this.on.state("connecting", "Connecting");
    let why = "the gateway closed the stream";
    try {
      const headers = this.key ? { authorization: `Bearer ${this.key}` } : {};
      const answer = await fetch(this.url, { headers, signal: stop.signal, cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) {
        this.on.state("lost", "Needs an API key");
        this.on.key((await problemOf(answer)).detail);
        return;
      }
      if (!answer.ok) throw new Error((await problemOf(answer)).detail);
      this.on.state("live", "Live");
      this.delay = FIRST_DELAY_MS;
      why = await this.read(answer.body) ?? why;
    } catch (error) {
      why = error.message;
    }
    if (stop.signal.aborted) return;
    this.on.state("lost", `Not connected: ${why}. Trying again.`);
    await new Promise((resolve) => setTimeout(resolve, this.delay));
    this.delay = Math.min(this.delay * 2, LONGEST_DELAY_MS);
    if (this.stop === stop) this.connect();
  }

  // Until the stream ends; returns the reason that the gateway gave, if any.
  async read(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let kept = "";
    let reason = null;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return reason;
      const blocks = (kept + value).split("\n\n");
      kept = blocks.pop();
      for (const block of blocks) {
        const name = /^event: (.*)$/m.exec(block)?.[1];
        const data = /^data: (.*)$/m.exec(block)?.[1];
        if (!name || !data) continue;
        if (name === "end") reason = JSON.parse(data).reason;
        else this.on.event(name, JSON.parse(data));
      }
    }
  }
}

// The error body of the gateway, or something like it.
export async function problemOf(answer) {
  try {
    const body = await answer.json();
    if (body.detail) return body;
  } catch { /* a proxy's page */ }
  return { detail: `HTTP status ${answer.status}`, reason: "" };
}
