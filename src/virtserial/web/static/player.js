// The list of recordings, and their player: asciicast v2, and recordings of ports, whose letters are bytes.

import { $, amount, element, get } from "./api.js";
import { makeScreen } from "./screen.js";

const IDLE = 2;
const SPEEDS = [0.5, 1, 2, 4, 8];

export async function listRecordings() {
  const listed = await (await get("/api/recordings")).json();
  $("recordings-rows").replaceChildren(...listed.map((each) => element("tr", {},
    element("td", {}, element("a", { href: `#/play/${encodeURIComponent(each.name)}` }, each.title || each.name)),
    element("td", {}, new Date(each.begun * 1000).toLocaleString()),
    element("td", { className: "n" }, amount(each.size)),
    element("td", { className: "n" }, element("a", { href: `/api/recordings/${encodeURIComponent(each.name)}`, download: each.name }, "Download")))));
  $("recordings-none").hidden = listed.length > 0;
  $("recordings").querySelector(".table").hidden = listed.length === 0;
}

function parse(text) {
  const lines = text.split("\n");
  const header = JSON.parse(lines[0]);
  const events = [];
  for (const line of lines.slice(1)) {
    // The last line may be cut short.
    try { events.push(JSON.parse(line)); } catch { break; }
  }
  return { header, events };
}

export class Player {
  constructor(name, text) {
    const { header, events } = parse(text);
    this.events = events;
    this.isBytes = header.virtserial === "virtserial-port";
    this.size = [header.width || 80, header.height || 24];
    this.length = events.length ? events[events.length - 1][0] : 0;
    this.at = 0;
    this.next = 0;
    this.speed = 1;
    this.build(header.title || name);
    this.seek(0);
    this.play();
  }

  build(title) {
    const { screen } = makeScreen(() => false);
    this.screen = screen;
    screen.options.disableStdin = true;
    screen.options.cursorBlink = false;
    this.button = element("button", { className: "primary", onclick: () => this.toggle() });
    this.slider = element("input", { type: "range", min: 0, max: Math.max(this.length, 0.001), step: "any", value: 0 });
    this.slider.setAttribute("aria-label", "Position");
    this.slider.addEventListener("input", () => this.seek(Number(this.slider.value)));
    this.slider.addEventListener("keydown", (event) => this.sliderKey(event));
    this.clock = element("span", { className: "clock" });
    this.mark = element("span", { className: "muted mark" });
    const speed = element("select", {}, ...SPEEDS.map((each) => element("option", { value: each, selected: each === 1 }, `${each}×`)));
    speed.setAttribute("aria-label", "Speed");
    speed.addEventListener("change", () => { this.speed = Number(speed.value); });
    this.idle = element("input", { type: "checkbox", checked: true, id: "idle" });
    const frame = element("div", { className: "frame" });
    $("player").replaceChildren(
      element("header", {}, element("a", { href: "#/recordings" }, "‹ Recordings"), element("h1", {}, title)), frame,
      element("footer", { className: "bar" }, this.button, this.slider, this.clock, speed,
        element("label", { htmlFor: "idle", className: "check" }, this.idle, "short pauses"), this.mark));
    screen.open(frame);
    this.button.focus();
  }

  sliderKey(event) {
    const step = { ArrowLeft: -5, ArrowRight: 5, PageDown: -30, PageUp: 30 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.seek(Math.min(Math.max(this.at + step, 0), this.length));
  }

  apply([, kind, text]) {
    if (kind === "o") this.screen.write(this.isBytes ? Uint8Array.from(text, (letter) => letter.charCodeAt(0)) : text);
    if (kind === "m") this.mark.textContent = text;
    if (kind === "r") {
      const [columns, rows] = text.split("x").map(Number);
      if (columns >= 2 && rows >= 1 && columns <= 1000 && rows <= 1000) this.screen.resize(columns, rows);
    }
  }

  seek(at) {
    if (at < this.at || this.next === 0) {
      this.screen.reset();
      this.screen.resize(...this.size);
      this.next = 0;
    }
    this.at = at;
    this.advance();
  }

  advance() {
    while (this.next < this.events.length && this.events[this.next][0] <= this.at) this.apply(this.events[this.next++]);
    this.slider.value = this.at;
    const text = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
    this.clock.textContent = `${text(this.at)} / ${text(this.length)}`;
    this.slider.setAttribute("aria-valuetext", this.clock.textContent);
  }

  play() {
    if (this.at >= this.length) this.seek(0);
    this.button.textContent = "Pause";
    this.last = performance.now();
    this.timer = setInterval(() => this.tick(), 40);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = undefined;
    this.button.textContent = "Play";
  }

  toggle() {
    if (this.timer) this.pause(); else this.play();
  }

  tick() {
    const now = performance.now();
    let at = this.at + ((now - this.last) / 1000) * this.speed;
    this.last = now;
    const next = this.events[this.next];
    if (next && this.idle.checked && next[0] - at > IDLE) at = next[0] - IDLE;
    this.at = Math.min(at, this.length);
    this.advance();
    if (this.at >= this.length) this.pause();
  }

  close() {
    this.pause();
    this.screen.dispose();
    $("player").replaceChildren();
  }
}
