// xterm.js as this console uses it: under a strict policy of content, with answers to the guest only when it is asked to.

import { Terminal } from "./vendor/xterm-6.0.0/xterm.mjs";
import { FitAddon } from "./vendor/addon-fit-0.11.0/addon-fit.mjs";
import { $ } from "./api.js";

// xterm.js writes its styles into elements of its own: these get the page's nonce.
const make = Document.prototype.createElement;
Document.prototype.createElement = function createElement(name, ...more) {
  const made = make.call(this, name, ...more);
  if (String(name).toLowerCase() === "style") made.nonce = $("terminal-styles").nonce;
  return made;
};

const THEME = {
  background: "#10151c", foreground: "#d6dde6", cursor: "#7cb7ff", cursorAccent: "#10151c", selectionBackground: "#2f4a6d",
  black: "#1c232c", red: "#f4747a", green: "#7fce8c", yellow: "#e5c07b", blue: "#6cb0f5", magenta: "#c99cf2", cyan: "#5fc9cf",
  white: "#d6dde6", brightBlack: "#68737f", brightRed: "#ff9a9e", brightGreen: "#a3e3ad", brightYellow: "#f3d99a",
  brightBlue: "#98cbff", brightMagenta: "#dfbfff", brightCyan: "#8fe3e7", brightWhite: "#ffffff",
};

export function makeScreen(answers, scrollback = 5000) {
  const screen = new Terminal({
    allowProposedApi: false, cols: 80, rows: 24, cursorBlink: true, fontSize: 14, scrollback, theme: THEME,
    fontFamily: 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace',
    linkHandler: null, macOptionIsMeta: true, minimumContrastRatio: 1,
  });
  const fit = new FitAddon();
  screen.loadAddon(fit);
  // What a guest asks a terminal (its kind, its cursor, its modes, its colours) is answered by one browser only.
  const swallow = () => !answers();
  for (const id of [{ final: "c" }, { prefix: ">", final: "c" }, { prefix: "=", final: "c" }, { final: "n" }, { prefix: "?", final: "n" },
    { intermediates: "$", final: "p" }, { prefix: "?", intermediates: "$", final: "p" }, { prefix: ">", final: "q" }]) {
    screen.parser.registerCsiHandler(id, swallow);
  }
  screen.parser.registerDcsHandler({ intermediates: "$", final: "q" }, swallow);
  for (const code of [4, 10, 11, 12]) screen.parser.registerOscHandler(code, (data) => data.includes("?") && !answers());
  return { screen, fit };
}
