// Requests to the console, small things that all parts need, and questions to people.

export const $ = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export async function get(path) {
  const answer = await fetch(path, { credentials: "same-origin" });
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

export async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST", credentials: "same-origin",
    headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  const text = await answer.text();
  let told = {};
  try { told = JSON.parse(text); } catch { told = { error: text }; }
  if (!answer.ok) throw new Error(told.error || answer.statusText);
  return told;
}

export function socketTo(path) {
  const socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}${path}`);
  socket.binaryType = "arraybuffer";
  return socket;
}

export function amount(bytes) {
  if (bytes < 1000) return `${Math.round(bytes)} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = -1;
  do { value /= 1024; unit += 1; } while (value >= 1000 && unit < units.length - 1);
  return `${value.toFixed(value < 10 ? 1 : 0)} ${units[unit]}`;
}

let fading;
export function say(text) {
  $("toast").textContent = text;
  clearTimeout(fading);
  fading = setTimeout(() => { $("toast").textContent = ""; }, 6000);
}

// Ask before something is done; returns the fields' values, or null.
export function ask(title, text, yes, fields = []) {
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  const inputs = fields.map((field) => {
    const input = element("input", { type: field.type || "text", required: Boolean(field.required), id: `ask-${field.name}` });
    if (field.pattern) input.pattern = field.pattern;
    const label = element("label", { htmlFor: input.id }, field.label);
    const row = field.type === "checkbox" ? [input, label] : [label, input];
    return [field, input, element("div", { className: field.type === "checkbox" ? "check" : "field" }, ...row)];
  });
  $("ask-fields").replaceChildren(...inputs.map(([, , row]) => row));
  const dialog = $("ask");
  dialog.returnValue = "no";
  dialog.showModal();
  (inputs[0]?.[1] || $("ask-yes")).focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const values = Object.fromEntries(inputs.map(([field, input]) =>
        [field.name, field.type === "checkbox" ? input.checked : input.value]));
      resolve(dialog.returnValue === "yes" ? values : null);
    }, { once: true });
  });
}
