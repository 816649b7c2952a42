"""`virtserial web --fleet` in a real browser: a console that only the broker leads to."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest
from support.broker import Broker
from support.browser import chromium
from support.places import ENVIRONMENT
from support.programs import run
from support.waiting import wait_until
from support.web_machine import PROMPT, machine, shell, web

pytestmark = pytest.mark.timeout(240)
CONNECTED = "document.querySelector('.panel:not([hidden]) .status')?.innerText.startsWith('connected')"


@contextlib.contextmanager
def joined(host):
    agent = subprocess.Popen([sys.executable, "-m", "virtserial", "fleet", "join", "--host", host], env=ENVIRONMENT)
    try:
        yield
    finally:
        agent.terminate()
        agent.wait(30)


def test_a_console_of_the_fleet_is_used_in_a_browser(folder, monkeypatch):
    broker = Broker(folder / "broker")
    monkeypatch.setitem(ENVIRONMENT, "VIRTSERIAL_FLEET", str(broker.file()))
    monkeypatch.setitem(ENVIRONMENT, "VIRTSERIAL_REGISTRY", f"{folder}/vms")
    with contextlib.ExitStack() as stack:
        stack.callback(broker.stop)
        status, _, complaint = run("fleet", "setup", "--memory", "--size", "16")
        assert status == 0, complaint
        open_page = stack.enter_context(chromium(folder))
        guest, _ = stack.enter_context(machine(folder, "alpha", ["org.example.0"]))
        stack.enter_context(shell(guest / "hvc0"))
        stack.enter_context(joined("h1"))
        wait_until(lambda: "h1/alpha" in run("fleet", "ls")[1], step=0.5)
        url, _ = stack.enter_context(web("--listen", "127.0.0.1:0", "--fleet"))
        page = open_page(url)
        page.wait("document.body.innerText.includes('h1/alpha') && document.body.innerText.includes('org.example.0')")
        if shots := os.environ.get("VIRTSERIAL_SHOTS"):
            page.screenshot(f"{shots}/fleet.png")
        page.go(f"{url}#/port/h1%2Falpha%2Fconsole0")
        page.wait(CONNECTED)
        page.type("\n")
        page.expect(PROMPT)
        page.type("echo $((6*7)) - through the broker\n")
        page.expect("42 - through the broker")
        if shots:
            page.screenshot(f"{shots}/fleet-console.png")
        assert page.complaints() == []
