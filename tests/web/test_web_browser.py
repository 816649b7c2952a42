"""The web console in a real browser: typing, sizes, restarts, two people, a watcher, many terminals, keys alone.

VIRTSERIAL_SHOTS names a folder for pictures of what was seen.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from types import SimpleNamespace

import pytest
from support.browser import SHIFT, chromium
from support.places import ENVIRONMENT
from support.programs import run
from support.waiting import wait_until
from support.web_machine import PROMPT, echoes, machine, shell, web

from virtserial.web.people import new_token

pytestmark = pytest.mark.timeout(240)
CONSOLE = "#/port/alpha%2Fconsole0"
TERMINALS = int(os.environ.get("VIRTSERIAL_TERMINALS", "20"))
"""Open at once in one page."""
PORTS = [f"org.example.{number:02}" for number in range(TERMINALS - 1)]
NAMED = {"button", "link", "textbox", "searchbox", "tab", "checkbox", "slider", "combobox", "navigation", "tablist"}
CONTRAST = """
(() => {
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const light = (colour) => {
    const [red, green, blue] = numbers(colour).map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (at) => {
    for (let each = at; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if ((numbers(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const at = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !at.checkVisibility() || at.closest(".xterm, dialog, noscript")) continue;
    const [one, other] = [light(getComputedStyle(at).color), light(behind(at))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) found.push([texts.currentNode.data.trim(), ratio]);
  }
  return found;
})()
"""
"""Visible texts with less contrast than WCAG's 4.5 to 1."""
SIZE = "document.querySelector('.panel:not([hidden]) .status').textContent.match(/(\\d+)\\D(\\d+)/)?.slice(1)"
SHOWS_FOCUS = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
CONNECTED = "document.querySelector('.panel:not([hidden]) .status')?.innerText.startsWith('connected')"


@pytest.fixture(scope="module")
def world(module_folder):
    """A browser, a machine with a shell, one with ports that answer; the console for its own user, and by token."""
    folder = module_folder
    patch = pytest.MonkeyPatch()
    patch.setitem(ENVIRONMENT, "VIRTSERIAL_REGISTRY", f"{folder}/vms")
    (folder / "rec").mkdir()
    tokens = {}
    lines = []
    for name, role in (("anne", "type"), ("wil", "watch")):
        tokens[name], digest = new_token()
        lines += [f"[{name}]", f'role = "{role}"', f'token = "{digest}"']
    users = folder / "users.toml"
    users.write_text("\n".join(lines))
    users.chmod(0o600)
    with contextlib.ExitStack() as stack:
        stack.callback(patch.undo)
        open_page = stack.enter_context(chromium(folder))
        alpha, _ = stack.enter_context(machine(folder, "alpha", ["org.example.log"]))
        stack.enter_context(shell(alpha / "hvc0"))
        many, _ = stack.enter_context(machine(folder, "many", PORTS))
        stack.enter_context(echoes(many / "hvc0", *(many / "virtio-ports" / port for port in PORTS)))
        words = ("--listen", "127.0.0.1:0", "--recordings", str(folder / "rec"))
        url, _ = stack.enter_context(web(*words, "--monitor", f"alpha={folder}/alpha.qmp"))
        shared, _ = stack.enter_context(web(*words, "--users", str(users)))
        yield SimpleNamespace(folder=folder, open=open_page, url=url, shared=shared, tokens=tokens)


@pytest.fixture
def open_page(world):
    """Open pages, which complain of nothing and ask nobody but the console."""
    pages = []

    def open_one(url, *place, **more):
        page = world.open(url, *place, **more)
        pages.append((page, url))
        return page

    yield open_one
    for page, url in pages:
        assert [each for each in page.complaints() if not page.forgives or page.forgives not in each] == []
        place = url.partition("#")[0]
        assert [each for each in page.requests() if not each.startswith((place, "data:", "about:"))] == []
        page.close()


def shoot(page, name):
    if folder := os.environ.get("VIRTSERIAL_SHOTS"):
        page.screenshot(f"{folder}/{name}.png")


def command(page, text, wanted):
    page.type(f"{text}\n")
    page.expect(wanted)


def log_in(page, token):
    page.wait("!document.getElementById('log-in').hidden")
    shoot(page, "log-in")
    page.type(f"{token}\n")
    page.wait("!document.getElementById('console').hidden")


def test_typing_and_sizes(world, open_page):
    page = open_page(f"{world.url}{CONSOLE}")
    page.wait(CONNECTED)
    page.type("\n")
    page.expect(PROMPT)
    command(page, "echo $((6*7)) - done", "42 - done")
    size = page.wait(SIZE)
    command(page, "stty size", f"{size[1]} {size[0]}")
    page.resize(900, 500)
    smaller = wait_until(lambda: (now := page.run(SIZE)) != size and now)
    assert int(smaller[0]) < int(size[0])
    page.type("clear\n")
    # The guest hears of it a moment later.
    wait_until(lambda: page.type("stty size\n") or f"{smaller[1]} {smaller[0]}" in page.screen(), step=0.5)
    page.resize(1280, 800)
    colours = "\\033[1;32mgreen\\033[0m \\033[44mblue\\033[0m gr\\303\\274\\303\\237e\\n"
    command(page, f"printf '{colours}'", "green blue grüße")
    shoot(page, "terminal")


def test_a_restart_of_the_device_loses_nothing(world, open_page):
    page = open_page(f"{world.url}{CONSOLE}")
    page.wait(CONNECTED)
    command(page, "echo be''fore", "before")
    page.type("for i in 1 2 3 4 5 6 7 8; do echo line-$i; sleep 0.3; done\n")
    page.expect("line-2")
    status, _, complaint = run("restart", "alpha", VIRTSERIAL_REGISTRY=f"{world.folder}/vms")
    assert status == 0, complaint
    page.expect("line-8")
    assert re.findall(r"^line-(\d)", page.screen(), re.MULTILINE)[-8:] == [str(number) for number in range(1, 9)]
    page.wait(CONNECTED)
    command(page, "echo af''ter", "after")


def test_a_machine_that_is_started_again_is_found_again(world, open_page):
    with machine(world.folder, "beta") as (guest, _), shell(guest / "hvc0"):
        page = open_page(f"{world.url}#/port/beta%2Fconsole0")
        page.wait(CONNECTED)
        page.type("echo on''ce\n")
        page.expect("once")
    page.wait("document.querySelector('.notice')?.hidden === false")
    shoot(page, "away")
    with machine(world.folder, "beta") as (guest, _), shell(guest / "hvc0"):
        page.wait(CONNECTED)
        page.type("echo twi''ce\n")
        page.expect("twice")


def test_a_console_that_is_started_again_is_found_again(world, open_page):
    with web("--listen", "127.0.0.1:0") as (url, _):
        port = url.rpartition(":")[2].strip("/")
        page = open_page(f"{url}{CONSOLE}")
        page.forgives = "ERR_CONNECTION_REFUSED"
        page.wait(CONNECTED)
    page.wait("document.querySelector('.status')?.innerText.startsWith('offline')")
    with web("--listen", f"127.0.0.1:{port}"):
        page.wait(CONNECTED)
        page.type("echo a''gain\n")
        page.expect("again")


def test_two_people_and_a_watcher(world, open_page):
    anne, also, wil = (open_page(world.shared, *place) for place in ((1280, 800), (390, 844, True), (1000, 700)))
    log_in(anne, world.tokens["anne"])
    log_in(also, world.tokens["anne"])
    log_in(wil, world.tokens["wil"])
    for page in (anne, also, wil):
        page.run(f"location.hash = '{CONSOLE}'")
    anne.wait(CONNECTED)
    also.wait(CONNECTED)
    wil.wait("document.querySelector('.status')?.innerText.startsWith('watching')")
    command(anne, "clear; echo from-an''ne", "from-anne")
    also.expect("from-anne")
    wil.expect("from-anne")
    command(also, "echo from-phone''", "from-phone")
    anne.expect("from-phone")
    anne.wait("document.querySelector('.people')?.innerText.includes('wil (watches)')")
    assert anne.run(SIZE) == also.run(SIZE)
    # Who watches types nothing, whatever their page sends.
    wil.type("echo from-wil\n")
    wil.run(
        "(async () => { const socket = new WebSocket(location.origin.replace('http', 'ws') + "
        "'/api/terminal?port=alpha%2Fconsole0'); await new Promise((done) => { socket.onopen = done; });"
        "socket.send(new TextEncoder().encode('echo from-wil\\n')); await new Promise((done) => { socket.onmessage ="
        "(event) => { if (String(event.data).includes('refused')) done(); }; }); socket.close(); })()"
    )
    command(anne, "echo mark''er", "marker")
    for page in (anne, also, wil):
        page.expect("marker")
        assert "from-wil" not in page.screen()
        assert not page.run("document.querySelector('[title=\"Unplug this port\"]').checkVisibility()")
    shoot(anne, "two-people")
    shoot(also, "phone")
    shoot(wil, "watcher")


def test_many_terminals(world, open_page):
    page = open_page(world.url)
    page.wait(f"document.querySelectorAll('[data-port]').length >= {TERMINALS + 2}")
    begun = time.monotonic()
    names = ["many/console0", *(f"many/{port}" for port in PORTS)]
    for name in names:
        page.run(f"location.hash = '#/port/{name.replace('/', '%2F')}'")
    dots = "document.querySelectorAll('.tab .dot.open').length"
    page.wait(f"{dots} === {len(names)}", 60)
    opened = time.monotonic() - begun
    for name in names[::7]:
        page.run(f"location.hash = '#/port/{name.replace('/', '%2F')}'")
        page.wait(CONNECTED)
        page.type("x")
        page.expect("[x]")
    shoot(page, "many")
    heap = page.run("performance.memory?.usedJSHeapSize >> 20")
    print(f"{TERMINALS} terminals in {opened:.1f} s; {heap} MiB of scripts")
    for _ in range(3):
        page.escape("q")
    page.wait(f"document.querySelectorAll('.tab').length === {len(names) - 3}")


def test_by_keys_alone(world, open_page):
    page = open_page(world.url)
    page.wait(f"document.querySelectorAll('[data-port]').length >= {TERMINALS + 2}")
    shoot(page, "figures")
    # The filter, a port, its terminal, and out of it again.
    page.press("/")
    page.type("alpha/con")
    page.press("ArrowDown")
    page.wait("document.activeElement.dataset.port === 'alpha/console0'")
    page.press("Enter")
    page.wait(CONNECTED)
    page.press("Tab")
    page.wait("document.activeElement.classList.contains('xterm-helper-textarea')")
    page.escape("b")
    page.wait("document.activeElement.closest('.bar') !== null")
    page.press("Tab", SHIFT)
    page.wait("document.activeElement.classList.contains('xterm-helper-textarea')")
    page.escape("l")
    page.wait("document.activeElement.dataset.port === 'alpha/console0'")
    # Help, by ? and by the terminal's own key.
    page.press("?")
    page.wait("document.getElementById('help').open")
    shoot(page, "help")
    page.press("Escape")
    page.wait("!document.getElementById('help').open")
    # Tab goes round: each thing that a mouse reaches is reached, has a name, and shows that it has the focus.
    page.run("document.getElementById('home').focus()")
    page.press("Tab")
    page.press("Tab", SHIFT)
    reached = []
    for _ in range(25):
        page.wait(f"document.activeElement === document.body || {SHOWS_FOCUS}")
        now = page.run(
            "(() => { const at = document.activeElement; if (at === document.body) return null;"
            "return at.id || at.title || at.innerText || at.className; })()"
        )
        assert now is not None, reached
        if now in reached:
            break
        reached.append(now)
        page.press("Tab")
    names = " ".join(reached)
    places = ("home", "help-button", "filter", "Figures", "recordings-link", "alpha/console0")
    for wanted in (*places, "Plug a port into alpha", "Restart the device process of many"):
        assert wanted in names, (wanted, reached)


def test_everything_has_a_name(world, open_page):
    page = open_page(f"{world.url}{CONSOLE}")
    page.wait(CONNECTED)
    page.call("Accessibility.enable")
    for node in page.call("Accessibility.getFullAXTree")["nodes"]:
        role, name = node.get("role", {}).get("value"), node.get("name", {}).get("value", "")
        if role in NAMED:
            assert name, node
    for scheme in ("light", "dark"):
        # Colours that are on their way to others would be read as well.
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        told = [{"name": name, "value": value} for name, value in features.items()]
        page.call("Emulation.setEmulatedMedia", features=told)
        for place in (CONSOLE, "#/figures", "#/recordings"):
            page.run(f"location.hash = '{place}'")
            page.wait("document.querySelectorAll('.page:not([hidden]), #terminals:not([hidden])').length === 1")
            wait_until(lambda: page.run(CONTRAST) == [], 30, f"{scheme} {place}: {page.run(CONTRAST)}", 0.1)
    page.run("document.getElementById('home').style.color = '#333'")
    assert [text for text, _ in page.run(CONTRAST)] == ["virtserial"]
    assert page.run("document.documentElement.lang") == "en"
    ids = page.run("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))
    assert page.run("[...document.querySelectorAll('img')].every((one) => one.hasAttribute('alt'))")


LATE_ANSWERS = """(() => {
    const at_once = window.fetch;
    window.fetch = async (...request) => {
        const answer = await at_once(...request);
        await new Promise((done) => setTimeout(done, 1000));
        return answer;
    };
})()"""
"""What is typed before an answer has come belongs to the terminal."""


def test_a_recording_is_made_and_played(world, open_page):
    page = open_page(f"{world.url}{CONSOLE}")
    page.wait(CONNECTED)
    page.run(LATE_ANSWERS)
    page.click("[title='Record this port on the host']")
    page.wait("document.querySelector('.recording') !== null")
    command(page, "clear; echo rec''orded", "recorded")
    page.click(".recording")
    page.wait("document.querySelector('.recording') === null")
    page.escape("l")
    page.click("#recordings-link")
    page.wait("document.querySelectorAll('#recordings-rows tr').length >= 1")
    shoot(page, "recordings")
    page.click("#recordings-rows a")
    page.expect("recorded")
    page.wait("document.querySelector('#player .primary')?.innerText === 'Play'")
    shoot(page, "player")
    page.press("Tab")
    page.press("ArrowLeft")
    page.wait("document.querySelector('.clock')?.innerText.startsWith('0:00')")


def test_a_port_is_plugged_and_unplugged(world, open_page):
    page = open_page(world.url)
    page.click("[title='Plug a port into alpha']")
    page.wait("document.getElementById('ask').open")
    page.type("org.example.new\n")
    page.wait("document.querySelector('[data-port=\"alpha/org.example.new\"]') !== null")
    page.click("[data-port='alpha/org.example.new']")
    page.wait("document.querySelector('.panel:not([hidden]) .status')?.innerText.length > 0")
    shoot(page, "plugged")
    page.click(".panel:not([hidden]) [title='Unplug this port']")
    page.wait("document.getElementById('ask').open")
    page.press("Enter")
    page.wait("document.querySelector('[data-port=\"alpha/org.example.new\"]') === null")


def test_a_port_that_another_client_has_is_taken_over(world, open_page):
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(f"{world.folder}/alpha.c1")
        page = open_page(f"{world.url}#/port/alpha%2Forg.example.log")
        page.wait("document.querySelector('.notice')?.innerText.includes('is busy')")
        shoot(page, "busy")
        page.click(".notice .primary")
        page.wait("document.querySelector('.notice').hidden")
        other.settimeout(60)
        assert other.recv(1) == b""
