// The page: who I am, what is shown, and which terminals are open.

import { $, get, post, say } from "./api.js";
import { listRecordings, Player } from "./player.js";
import { Ports } from "./ports.js";
import { PortTerminal } from "./terminal.js";

const PAGES = ["figures", "recordings", "player", "terminals"];

class Deck {
  constructor() {
    this.open = new Map();
    this.current = null;
  }

  terminal(name) {
    if (!this.open.has(name)) this.open.set(name, new PortTerminal(name, this, options));
    return this.open.get(name);
  }

  show(terminal) {
    this.current = terminal;
    for (const each of this.open.values()) each.show(each === terminal);
    document.title = `${terminal.name} · virtserial`;
    ports.select(terminal.name);
    const hash = `#/port/${encodeURIComponent(terminal.name)}`;
    routed = hash;
    if (location.hash !== hash) location.hash = hash;
    showPage("terminals");
    terminal.show(true);
  }

  hide() {
    this.current = null;
    for (const each of this.open.values()) each.show(false);
    ports.select("");
  }

  step(count) {
    const all = [...this.open.values()];
    this.show(all[(all.indexOf(this.current) + count + all.length) % all.length]);
  }

  close(terminal) {
    const all = [...this.open.values()];
    const index = all.indexOf(terminal);
    terminal.close();
    this.open.delete(terminal.name);
    all.splice(index, 1);
    if (this.current !== terminal) return;
    if (all.length) this.show(all[Math.min(index, all.length - 1)]); else this.leave();
  }

  leave() {
    const name = this.current?.name;
    location.hash = "#/";
    route();
    ports.current = name;
    ports.draw();
    ports.focus();
  }

  redraw() {
    this.current?.draw();
  }
}

const options = {
  recordings: false,
  port: (name) => ports.ports[name],
  pluggable: (name) => {
    const port = ports.ports[name];
    return Boolean(port && ports.machines[port.machine]?.plug);
  },
  unplug: (name) => ports.unplug(name),
  help: () => $("help").showModal(),
};
const deck = new Deck();
let ports;
let player;
let routed;

function showPage(page) {
  for (const each of PAGES) $(each).hidden = each !== page;
  document.body.dataset.page = page;
  if (page !== "player" && player) {
    player.close();
    player = undefined;
  }
}

async function play(name) {
  const here = routed;
  const text = await (await get(`/api/recordings/${encodeURIComponent(name)}`)).text();
  if (routed !== here) return;
  player?.close();
  showPage("player");
  player = new Player(name, text);
}

async function route() {
  routed = location.hash;
  const [, kind, ...rest] = location.hash.split("/");
  const name = decodeURIComponent(rest.join("/"));
  try {
    if (kind === "port" && name) return deck.show(deck.terminal(name));
    deck.hide();
    document.title = "virtserial";
    if (kind === "play" && name) return await play(name);
    if (kind === "recordings") {
      await listRecordings();
      return showPage("recordings");
    }
    showPage("figures");
    if (!kind) document.body.dataset.page = "list";
    ports.drawFigures();
  } catch (error) {
    say(error.message);
  }
}

function keys(event) {
  const inText = event.target.closest?.("input, textarea, select, dialog");
  if (inText || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "/") {
    event.preventDefault();
    $("filter").focus();
  } else if (event.key === "?") {
    options.help();
  } else if (event.target.closest?.("#tabs") && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    deck.step(event.key === "ArrowRight" ? 1 : -1);
    deck.current.tab.focus();
  }
}

async function start() {
  const me = await (await get("/api/me")).json();
  $("log-in").hidden = !(me.user === null && me["log-in"]);
  $("stranger").hidden = !(me.user === null && !me["log-in"]);
  $("console").hidden = me.user === null;
  if (me.user === null) {
    $("token").focus();
    return;
  }
  $("me").textContent = me.user;
  $("me").title = `may ${me.role}`;
  $("log-out").hidden = !me["log-in"];
  $("recordings-link").hidden = !me.recordings;
  options.recordings = me.recordings;
  ports = new Ports((name) => deck.show(deck.terminal(name)), () => location.reload());
  const draw = ports.draw.bind(ports);
  ports.draw = () => { draw(); deck.redraw(); };
  window.addEventListener("hashchange", () => { if (location.hash !== routed) route(); });
  window.addEventListener("keydown", keys);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) deck.current?.withdraw(); else deck.current?.measure();
  });
  await route();
}

$("log-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await post("/api/log-in", { token: $("token").value.trim() });
    $("token").value = "";
    $("log-in-error").textContent = "";
    await start();
  } catch (error) { $("log-in-error").textContent = error.message; }
});
$("log-out").addEventListener("click", async () => {
  await post("/api/log-out", {}).catch(() => {});
  location.reload();
});
$("help-button").addEventListener("click", options.help);
$("help").addEventListener("close", () => deck.current?.screen.focus());
start().catch((error) => say(error.message));
