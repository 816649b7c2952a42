// A terminal on a port: its WebSocket, its screen, and the bar below it.  terminals.py tells of the messages.

import { $, element, post, say, socketTo } from "./api.js";
import { makeScreen } from "./screen.js";

const ACKNOWLEDGE = 32 << 10;
const PIECE = 16 << 10;
const RETRY = [300, 600, 1200, 2500, 5000];
const ESCAPE = "\x1d";
const BAR = [["Esc", "\x1b"], ["Tab", "\t"], ["Ctrl", null], ["↑", "\x1b[A"], ["↓", "\x1b[B"], ["←", "\x1b[D"], ["→", "\x1b[C"],
  ["^C", "\x03"], ["|", "|"], ["/", "/"], ["-", "-"], ["~", "~"]];

export class PortTerminal {
  constructor(name, deck, options) {
    this.name = name;
    this.deck = deck;
    this.options = options;
    this.facts = { state: "connecting", why: "", people: [], types: false, answers: false, lost: 0, refused: 0, recording: false };
    this.replaying = 0;
    this.unacknowledged = 0;
    this.attempts = 0;
    this.isWatching = false;
    this.ctrl = false;
    this.afterEscape = false;
    this.encoder = new TextEncoder();
    this.build();
    this.connect();
  }

  // The page

  build() {
    const { screen, fit } = makeScreen(() => this.facts.answers && this.replaying <= 0);
    this.screen = screen;
    this.fit = fit;
    this.tab = element("button", { className: "tab", onclick: () => this.deck.show(this) },
      element("i", { className: "dot" }), element("span", {}, this.name));
    this.tab.setAttribute("role", "tab");
    this.frame = element("div", { className: "frame" });
    this.notice = element("div", { className: "notice", hidden: true });
    this.notice.setAttribute("role", "status");
    const button = (text, title, action) => element("button", { className: "quiet", title, onclick: action }, text);
    this.status = element("span", { className: "status" });
    this.status.setAttribute("role", "status");
    this.people = element("span", { className: "people" });
    this.back = button("‹ Ports", "Go to the list", () => this.deck.leave());
    this.back.classList.add("back");
    this.watch = button("Only watch", "Look on without typing", () => this.toggleWatch());
    this.record = button("● Record", "Record this port on the host", () => this.toggleRecord());
    this.unplug = button("Unplug", "Unplug this port", () => this.options.unplug(this.name));
    this.unplug.classList.add("rare");
    const close = button("Close", "Close this terminal (Ctrl-] q)", () => this.deck.close(this));
    const hint = element("span", { className: "hint" }, "Ctrl-] ? for keys");
    this.bar = element("footer", { className: "bar" }, this.back, this.status, this.people, element("span", { className: "space" }),
      hint, this.watch, this.record, this.unplug, close);
    this.keys = element("div", { className: "keys" }, ...BAR.map(([label, data]) => this.barKey(label, data)));
    this.panel = element("div", { className: "panel", hidden: true }, this.notice, this.frame, this.keys, this.bar);
    this.panel.setAttribute("role", "tabpanel");
    this.panel.setAttribute("aria-label", this.name);
    $("terminals").append(this.panel);
    $("tabs").append(this.tab);
    screen.open(this.frame);
    screen.onData((data) => this.typed(data));
    screen.onBinary((data) => this.send(Uint8Array.from(data, (letter) => letter.charCodeAt(0))));
    screen.attachCustomKeyEventHandler((event) => this.key(event));
    this.observer = new ResizeObserver(() => this.measure());
    this.observer.observe(this.frame);
  }

  barKey(label, data) {
    const made = element("button", { tabIndex: -1 }, label);
    // A tap must not take the focus, or the phone's keyboard goes away.
    made.addEventListener("pointerdown", (event) => event.preventDefault());
    made.addEventListener("click", () => {
      if (data === null) this.setCtrl(!this.ctrl); else this.typed(data);
      this.screen.focus();
    });
    if (data === null) this.ctrlKey = made;
    return made;
  }

  setCtrl(on) {
    this.ctrl = on;
    this.ctrlKey.setAttribute("aria-pressed", String(on));
  }

  show(visible) {
    this.panel.hidden = !visible;
    this.tab.setAttribute("aria-selected", String(visible));
    this.tab.tabIndex = visible ? 0 : -1;
    if (!visible) this.withdraw();
    if (visible) {
      this.tab.scrollIntoView({ block: "nearest", inline: "nearest" });
      this.tab.classList.remove("news");
      this.measure();
      this.screen.focus();
    }
  }

  // A window that nobody sees makes the terminal no smaller for others.
  withdraw() {
    if (this.window && this.facts.types) this.tell({ window: null });
    this.window = "";
  }

  measure() {
    if (this.panel.hidden || document.hidden) return;
    const room = this.fit.proposeDimensions();
    if (!room || !Number.isFinite(room.cols) || room.cols < 2 || room.rows < 1) return;
    const key = `${room.cols} ${room.rows}`;
    if (!this.facts.size && (this.screen.cols !== room.cols || this.screen.rows !== room.rows)) this.screen.resize(room.cols, room.rows);
    this.room = room;
    this.markSmaller();
    if (key === this.window || !this.isOpen) return;
    this.window = key;
    if (this.facts.types) this.tell({ window: [Math.min(room.cols, 1000), Math.min(room.rows, 1000)] });
  }

  // Somebody else's window is smaller: the terminal has its size.
  markSmaller() {
    const { size } = this.facts;
    this.frame.classList.toggle("smaller", Boolean(size && this.room && (size[0] < this.room.cols || size[1] < this.room.rows)));
  }

  // The connection

  get isOpen() { return this.socket?.readyState === WebSocket.OPEN; }

  connect() {
    const query = new URLSearchParams({ port: this.name });
    if (this.isWatching) query.set("watch", "1");
    const socket = socketTo(`/api/terminal?${query}`);
    this.socket = socket;
    socket.addEventListener("open", () => {
      this.attempts = 0;
      this.window = "";
      this.facts.size = undefined;
      this.screen.reset();
    });
    socket.addEventListener("message", (event) => {
      if (socket !== this.socket) return;
      if (typeof event.data === "string") this.told(JSON.parse(event.data)); else this.shown(new Uint8Array(event.data));
    });
    socket.addEventListener("close", (event) => {
      if (socket !== this.socket) return;
      this.told({ state: "offline", why: event.reason || "the console does not answer; trying again", people: [] });
      this.retry = setTimeout(() => this.connect(), RETRY[Math.min(this.attempts++, RETRY.length - 1)]);
    });
  }

  told(facts) {
    if (facts.replay) this.replaying = facts.replay;
    if (facts.lost > this.facts.lost) say(`${this.name}: this browser was too slow, ${facts.lost - this.facts.lost} bytes are left out`);
    if (facts.refused > this.facts.refused) say(`${this.name}: the guest did not take ${facts.refused - this.facts.refused} typed bytes`);
    Object.assign(this.facts, facts);
    if (facts.size) this.screen.resize(facts.size[0], facts.size[1]);
    this.markSmaller();
    if ("types" in facts) this.measure();
    this.draw();
  }

  draw() {
    const { state, why, people, types, recording, size } = this.facts;
    const texts = { connected: types ? "connected" : "watching", connecting: "connecting", busy: "busy", offline: "offline" };
    const port = this.options.port(this.name);
    const closed = state === "connected" && port && !port.guest_open;
    const taken = state === "connected" && port?.busy_with ? `${port.busy_with} has it; waiting` : "";
    const text = taken || (closed ? "the guest has not opened it" : texts[state]);
    const sized = size ? ` · ${size[0]}×${size[1]}` : "";
    // A reader of the screen hears of changes only.
    if (this.status.textContent !== text + sized) this.status.replaceChildren(text, element("span", { className: "size" }, sized));
    this.tab.firstChild.className = `dot ${state === "connected" ? "open" : state === "busy" ? "busy" : "away"}`;
    this.drawPeople(people);
    this.notice.hidden = state === "connected";
    if (state !== "connected") this.drawNotice(state, why);
    this.screen.options.disableStdin = !types;
    this.screen.options.cursorBlink = types;
    const mayType = port ? port.types : types;
    this.watch.hidden = !mayType;
    this.watch.textContent = this.isWatching ? "Type again" : "Only watch";
    this.record.hidden = !types || !this.options.recordings;
    this.record.textContent = recording ? "■ Stop recording" : "● Record";
    this.record.classList.toggle("recording", recording);
    this.unplug.hidden = !this.options.pluggable(this.name);
  }

  drawPeople(people) {
    const windows = new Map();
    for (const { name, types } of people) {
      const text = types ? name : `${name} (watches)`;
      windows.set(text, (windows.get(text) || 0) + 1);
    }
    this.people.replaceChildren(...(people.length > 1 ? [...windows] : []).map(([text, count]) =>
      element("span", { className: "person" }, count > 1 ? `${text} ×${count}` : text)));
  }

  drawNotice(state, why) {
    const parts = [element("strong", {}, state === "busy" ? "Busy" : state === "offline" ? "Offline" : "Connecting"), element("span", {}, why)];
    if (state === "busy" && this.facts.types) {
      parts.push(element("button", { className: "primary", onclick: () => this.tell({ retry: true }) }, "Take it over"));
    }
    if (this.notice.textContent !== parts.map((part) => part.textContent).join("")) this.notice.replaceChildren(...parts);
  }

  shown(data) {
    if (this.panel.hidden) this.tab.classList.add("news");
    this.screen.write(data, () => {
      this.replaying -= data.length;
      this.unacknowledged += data.length;
      if (this.unacknowledged >= ACKNOWLEDGE) this.acknowledge();
      else this.acknowledging ??= setTimeout(() => this.acknowledge(), 100);
    });
  }

  acknowledge() {
    clearTimeout(this.acknowledging);
    this.acknowledging = undefined;
    this.tell({ shown: this.unacknowledged });
    this.unacknowledged = 0;
  }

  tell(message) {
    if (this.isOpen) this.socket.send(JSON.stringify(message));
  }

  send(bytes) {
    if (!this.isOpen || !this.facts.types) return;
    for (let start = 0; start < bytes.length; start += PIECE) this.socket.send(bytes.subarray(start, start + PIECE));
  }

  // Keys

  typed(text) {
    let data = text;
    if (this.ctrl && data.length === 1) {
      const code = data.toUpperCase().charCodeAt(0);
      if (code >= 0x40 && code < 0x60) data = String.fromCharCode(code & 0x1f);
      this.setCtrl(false);
    }
    this.send(this.encoder.encode(data));
  }

  key(event) {
    if (event.type !== "keydown") return !this.afterEscape;
    if (this.afterEscape) {
      if (["Control", "Shift", "Alt", "Meta", "AltGraph"].includes(event.key)) return false;
      this.afterEscape = false;
      this.panel.classList.remove("escape");
      event.preventDefault();
      this.command(event.key);
      return false;
    }
    if (event.ctrlKey && !event.altKey && (event.key === "]" || event.code === "BracketRight")) {
      this.afterEscape = true;
      this.panel.classList.add("escape");
      event.preventDefault();
      return false;
    }
    return true;
  }

  command(key) {
    const commands = {
      l: () => this.deck.leave(), b: () => this.bar.querySelector("button:not([hidden]):not(.back)")?.focus(),
      n: () => this.deck.step(1), p: () => this.deck.step(-1), q: () => this.deck.close(this),
      s: () => this.typed(ESCAPE), "]": () => this.typed(ESCAPE), v: () => this.paste(), "?": () => this.options.help(),
    };
    (commands[key.toLowerCase()] || commands["?"])();
  }

  async paste() {
    try { this.screen.paste(await navigator.clipboard.readText()); } catch { say("the browser does not give the clipboard away"); }
  }

  // Buttons

  toggleWatch() {
    this.isWatching = !this.isWatching;
    this.facts.types = false;
    this.reconnect();
    this.screen.focus();
  }

  reconnect() {
    const before = this.socket;
    clearTimeout(this.retry);
    this.connect();
    before.close();
  }

  async toggleRecord() {
    // At once: a space that is typed before the answer would press the button again.
    this.screen.focus();
    try {
      const told = await post("/api/record", { port: this.name, on: !this.facts.recording });
      if (told.name) say(`recording into ${told.name}`);
    } catch (error) { say(error.message); }
  }

  close() {
    clearTimeout(this.retry);
    const socket = this.socket;
    this.socket = null;
    socket.close();
    this.observer.disconnect();
    this.screen.dispose();
    this.panel.remove();
    this.tab.remove();
  }
}
