// The list of machines and ports, and the table of figures; both follow the console's WebSocket.

import { $, amount, ask, element, post, say, socketTo } from "./api.js";

const RETRY = [500, 1000, 2000, 4000];
const counted = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

// An element that is taken out and put back loses the focus: what can stay where it is stays.
function place(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.childNodes]) if (!wanted.has(child)) child.remove();
  children.forEach((child, index) => {
    if (parent.childNodes[index] !== child) parent.insertBefore(child, parent.childNodes[index] ?? null);
  });
}

export class Ports {
  constructor(open, lost) {
    this.open = open;
    this.lost = lost;
    this.machines = {};
    this.ports = {};
    this.rates = {};
    this.rows = new Map();
    this.attempts = 0;
    this.at = 0;
    $("filter").addEventListener("input", () => this.draw());
    $("filter").addEventListener("keydown", (event) => this.filterKey(event));
    $("ports").addEventListener("keydown", (event) => this.listKey(event));
    this.connect();
  }

  connect() {
    const socket = socketTo("/api/list");
    socket.addEventListener("open", () => {
      this.attempts = 0;
      this.machines = {};
      this.ports = {};
    });
    socket.addEventListener("message", (event) => this.told(JSON.parse(event.data)));
    socket.addEventListener("close", (event) => {
      $("link").textContent = "offline";
      if (event.code === 1008) this.lost();
      setTimeout(() => this.connect(), RETRY[Math.min(this.attempts++, RETRY.length - 1)]);
    });
  }

  told(told) {
    $("link").textContent = "";
    const span = told.at - this.at;
    for (const name of Object.keys(this.ports)) {
      if (!(name in told.ports)) this.rates[name] = [0, 0];
    }
    for (const [name, port] of Object.entries(told.ports)) {
      const before = this.ports[name];
      const rate = (field) => (before && span > 0 ? Math.max(0, (port[field] - before[field]) / span) : 0);
      this.rates[name] = port ? [rate("to_host"), rate("to_guest")] : [0, 0];
      if (port) this.ports[name] = port; else delete this.ports[name];
    }
    for (const [name, machine] of Object.entries(told.machines)) {
      if (machine) this.machines[name] = machine; else delete this.machines[name];
    }
    this.at = told.at;
    this.draw();
  }

  draw() {
    const wanted = $("filter").value.trim().toLowerCase();
    const groups = [];
    let count = 0;
    for (const name of Object.keys(this.machines).sort()) {
      const ports = Object.values(this.ports)
        .filter((port) => port.machine === name && `${port.name} ${name}/${port.console}`.toLowerCase().includes(wanted))
        .sort((a, b) => Number(Boolean(b.console)) - Number(Boolean(a.console)) || a.name.localeCompare(b.name, "en", { numeric: true }));
      if (wanted && !ports.length && !name.toLowerCase().includes(wanted)) continue;
      count += ports.length;
      groups.push(this.group(name, ports));
    }
    if (!groups.length) groups.push(element("p", { className: "empty" }, wanted ? "No port has this in its name." : "No virtual machine runs here."));
    place($("ports"), groups);
    const rows = [...$("ports").querySelectorAll("[data-port]")];
    const first = rows.find((row) => row.dataset.port === this.current) || rows[0];
    rows.forEach((row) => { row.tabIndex = row === first ? 0 : -1; });
    if (!$("figures").hidden) this.drawFigures();
    return count;
  }

  group(name, ports) {
    const machine = this.machines[name];
    const kept = (kind, tag, className) => this.kept(`${name} ${kind}`, () => element(tag, { className }));
    const title = kept("title", "h2", "");
    title.textContent = name;
    const restarts = kept("restarts", "span", "muted");
    restarts.textContent = machine.restarts ? `${machine.restarts} ${machine.restarts === 1 ? "restart" : "restarts"}` : "";
    const error = kept("error", "p", "bad");
    error.textContent = machine.error;
    const head = kept("head", "div", "machine");
    const buttons = [];
    if (machine.plug) buttons.push(this.button(name, "+", `Plug a port into ${name}`, () => this.plug(name)));
    if (machine.restart) buttons.push(this.button(name, "↻", `Restart the device process of ${name}`, () => this.restart(name)));
    place(head, [title, restarts, ...buttons]);
    const group = kept("group", "section", "");
    place(group, [head, ...(machine.error ? [error] : []), ...ports.map((port) => this.row(port, name))]);
    return group;
  }

  // Elements stay the same, so that figures that change take neither a tap nor the focus away.
  kept(key, make) {
    if (!this.rows.has(key)) this.rows.set(key, make());
    return this.rows.get(key);
  }

  button(name, text, label, action) {
    const made = this.kept(`${name} ${text}`, () => element("button", { className: "quiet small", title: label, onclick: action }, text));
    made.setAttribute("aria-label", label);
    return made;
  }

  row(port, machine) {
    const row = this.kept(port.name, () => element("button", { className: "port", onclick: () => this.choose(port.name) },
      element("i", { className: "dot" }), element("span", { className: "name" }), element("span", { className: "kind" }),
      element("span", { className: "figures" })));
    row.dataset.port = port.name;
    const [dot, name, kind, figures] = row.children;
    const [toHost, toGuest] = this.rates[port.name] || [0, 0];
    dot.className = `dot ${port.refusal ? "none" : port.guest_open ? "open" : ""}`;
    name.textContent = port.name.slice(machine.length + 1);
    kind.textContent = port.console || "";
    kind.hidden = !port.console || port.console === name.textContent;
    const used = port.clients ? `${port.clients} ${port.clients === 1 ? "client" : "clients"}` : "";
    const moving = [toHost ? `↓ ${amount(toHost)}/s` : "", toGuest ? `↑ ${amount(toGuest)}/s` : ""].filter(Boolean).join(" ");
    figures.textContent = [moving, used].filter(Boolean).join(" · ");
    row.title = port.refusal || (port.guest_open ? "the guest has it open" : "the guest has not opened it");
    row.setAttribute("aria-label", `${port.name}, ${port.console ? "console" : "port"}, ${row.title}`);
    row.classList.toggle("current", port.name === this.current);
    row.setAttribute("aria-current", port.name === this.current ? "true" : "false");
    return row;
  }

  choose(name) {
    $("filter").value = "";
    this.open(name);
  }

  select(name) {
    this.current = name;
    this.draw();
  }

  drawFigures() {
    const ports = Object.values(this.ports).sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
    const cell = (text, kind = "") => element("td", { className: kind }, text);
    const rows = ports.map((port) => {
      const [toHost, toGuest] = this.rates[port.name] || [0, 0];
      const row = this.kept(`${port.name} figures`, () => element("tr", {}, element("td", {},
        element("a", { href: `#/port/${encodeURIComponent(port.name)}` }, port.name))));
      const rate = (value) => cell(value ? `${amount(value)}/s` : "–", value ? "n" : "n muted");
      const total = (value) => cell(value ? amount(value) : "0", value ? "n" : "n muted");
      const trouble = (value) => cell(value ? amount(value) : "0", value ? "n warn" : "n muted");
      place(row, [row.firstChild,
        element("td", {}, element("i", { className: `dot ${port.guest_open ? "open" : ""}` }), port.guest_open ? " open" : " closed"),
        cell(port.clients === null ? "?" : port.clients, "n"), total(port.to_host), rate(toHost), total(port.to_guest), rate(toGuest),
        trouble(port.discarded), trouble(port.dropped)]);
      return row;
    });
    place($("figures-rows"), rows);
    const sum = (index) => Object.values(this.rates).reduce((total, rate) => total + rate[index], 0);
    const open = ports.filter((port) => port.guest_open).length;
    $("figures-sum").textContent = `${counted(Object.keys(this.machines).length, "machine")} · `
      + `${counted(ports.length, "port")}, ${open} open · to hosts ${amount(sum(0))}/s · to guests ${amount(sum(1))}/s`;
  }

  // Keys

  listKey(event) {
    const rows = [...$("ports").querySelectorAll("[data-port]")];
    const index = rows.indexOf(document.activeElement);
    const next = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (next === undefined || event.ctrlKey || event.altKey) return;
    event.preventDefault();
    if (next < 0) $("filter").focus(); else rows[Math.min(next, rows.length - 1)]?.focus();
  }

  filterKey(event) {
    const rows = $("ports").querySelectorAll("[data-port]");
    if (event.key === "ArrowDown") { event.preventDefault(); rows[0]?.focus(); }
    if (event.key === "Enter") rows[0]?.click();
    if (event.key === "Escape") {
      $("filter").value = "";
      this.draw();
    }
  }

  focus() {
    ($("ports").querySelector("[data-port][tabindex='0']") || $("filter")).focus();
  }

  // Changes of machines

  async restart(name) {
    const text = "Both processes of the device are replaced in place. The guest and all clients stay connected.";
    if (await ask(`Restart the device of ${name}?`, text, "Restart")) {
      await post("/api/restart", { machine: name }).then(() => say(`${name}: the device restarts`), (error) => say(error.message));
    }
  }

  async plug(name) {
    const fields = [{ name: "port", label: "Name", required: true, pattern: "[A-Za-z0-9][A-Za-z0-9._:\\-]{0,63}" },
      { name: "console", label: "a console (hvc)", type: "checkbox" }];
    const told = await ask(`Plug a port into ${name}`, "It gets a socket beside the machine's monitor.", "Plug", fields);
    if (told) await post("/api/plug", { machine: name, ...told }).then(() => say(`${told.port} is plugged in`), (error) => say(error.message));
  }

  async unplug(name) {
    if (await ask(`Unplug ${name}?`, "The guest loses this port.", "Unplug")) {
      await post("/api/unplug", { port: name }).then(() => say(`${name} is being unplugged`), (error) => say(error.message));
    }
  }
}
