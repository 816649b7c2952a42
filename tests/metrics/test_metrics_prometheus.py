"""Debian's Prometheus over a real exporter and a real device: what it stores, the rules, the dashboard's queries."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import urllib.parse
import urllib.request

import pytest
from support.embedded_guest import EmbeddedGuest
from support.exporter import exporter
from support.fetched import fetch_or_skip
from support.places import ROOT
from support.serving import serve
from support.waiting import wait_until

from virtserial.metrics.catalogue import METRICS
from virtserial.rig.programs import programs

pytest.importorskip("prometheus_client")
RULES = ROOT / "packaging/prometheus/virtserial.rules.yml"
RULES_TEST = ROOT / "tests/metrics/virtserial.rules.test.yml"
DASHBOARD = ROOT / "packaging/grafana/virtserial.json"
PORT = "org.example.0"
NAMES = {metric.name for metric in METRICS if metric.kind != "histogram"} | {
    metric.name + part for metric in METRICS if metric.kind == "histogram" for part in ("_bucket", "_count", "_sum")
}
METRIC = re.compile(r"\bvirtserial_\w+")
GRAFANA = {"$__rate_interval": "5m", "$instance": ".*", "$vm": ".*"}


@pytest.fixture(scope="module")
def prometheus_programs():
    return fetch_or_skip(programs, "prometheus")


@pytest.fixture(scope="module")
def device(module_folder):
    options = [
        "--name", "alpha", "-device", f"virtio-serial,id=ser0,socket={module_folder}/s",
        "-chardev", f"socket,id=c0,path={module_folder}/c0,server=on,wait=off",
        "-device", f"virtserialport,chardev=c0,name={PORT}",
    ]  # fmt: skip
    with serve(*options, registry=module_folder / "vms") as process:
        yield process


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def ask(prometheus_programs, device, module_folder):
    """A function that asks Prometheus's API, which scrapes an exporter each second."""
    with exporter(module_folder / "vms") as url:
        target = url.split("/")[2]
        (module_folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
            f"rule_files: ['{RULES}']\n"
            f"scrape_configs: [{{job_name: virtserial, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        where = f"127.0.0.1:{free_port()}"
        with (module_folder / "log").open("w") as log, subprocess.Popen(
            [*prometheus_programs.command("prometheus"), f"--config.file={module_folder}/prometheus.yml",
             f"--storage.tsdb.path={module_folder}/data", f"--web.listen-address={where}"],
            stdout=subprocess.DEVNULL, stderr=log,
        ) as process:  # fmt: skip

            def ask(what, **parameters):
                with urllib.request.urlopen(
                    f"http://{where}/api/v1/{what}?{urllib.parse.urlencode(parameters)}", timeout=60
                ) as answer:
                    told = json.load(answer)
                assert told["status"] == "success"
                return told["data"]

            def is_up():
                assert process.poll() is None, (module_folder / "log").read_text()
                try:
                    return ask("query", query="virtserial_vm_up")["result"]
                except OSError:
                    return False

            try:
                wait_until(is_up, 30, step=0.2)
                yield ask
            finally:
                process.terminate()


def value(ask, query):
    """The value of the only series that a query yields, or None."""
    result = ask("query", query=query)["result"]
    return float(result[0]["value"][1]) if len(result) == 1 else None


def test_what_a_guest_moves_is_stored_exactly(ask, module_folder):
    with EmbeddedGuest(str(module_folder / "s"), PORT) as guest:
        guest.check_port(PORT, f"{module_folder}/c0", 300_000)
        for way in ("to_host", "to_guest"):
            query = f'virtserial_port_bytes_total{{vm="alpha",port="{PORT}",direction="{way}"}}'
            wait_until(lambda query=query: value(ask, query) == 300_000, step=0.3)
        wait_until(lambda: value(ask, "virtserial_controller_vmm_connected") == 1, step=0.3)


def test_every_metric_is_stored(ask):
    stored = set(ask("label/__name__/values"))
    wait_until(lambda: set(ask("label/__name__/values")) >= NAMES, step=0.5, complaint=f"lacking {NAMES - stored}")


def test_the_rules_run_and_a_machine_that_is_well_causes_no_alert(ask):
    def rules():
        return [rule for group in ask("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] == "ok" for rule in rules()), step=0.5)
    alerts = {rule["name"]: rule["state"] for rule in rules() if rule["type"] == "alerting"}
    assert len(alerts) >= 12
    # A busy machine may be late by two seconds.
    assert {name for name, state in alerts.items() if state == "firing"} <= {"VirtserialWorkerHangs"}


def queries():
    """Every query of the dashboard, with Grafana's variables filled in."""
    texts = re.findall(r'"(?:expr|definition)": ("(?:[^"\\]|\\.)*")', DASHBOARD.read_text())
    for text in map(json.loads, texts):
        for variable, instead in GRAFANA.items():
            text = text.replace(variable, instead)
        yield re.sub(r"^label_values\((.*), \w+\)$", r"\1", text)


def test_prometheus_answers_every_query_of_the_dashboard(ask):
    found = list(queries())
    assert len(found) > 25
    for query in found:
        ask("query", query=query)


def test_dashboard_and_rules_name_what_there_is_and_the_page_all_of_it():
    for path in (DASHBOARD, RULES):
        assert set(METRIC.findall(path.read_text())) <= NAMES
    page = (ROOT / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `(virtserial_\w+)` \((\w+)\) \| .*? \| (.*) \|$", page, re.MULTILINE)
    assert rows == [(metric.name, metric.kind, metric.what) for metric in METRICS]
    shown = set(METRIC.findall(DASHBOARD.read_text()))
    assert {name for name in NAMES if not name.endswith(("_count", "_sum"))} == shown


@pytest.mark.parametrize("words", [("check", "rules", RULES), ("test", "rules", RULES_TEST)])
def test_promtool_accepts_the_rules_and_their_tests_pass(prometheus_programs, words):
    done = subprocess.run(
        [*prometheus_programs.command("promtool"), *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_every_alert_has_a_test():
    names = re.findall(r"- alert: (\w+)", RULES.read_text())
    tests = RULES_TEST.read_text()
    assert [name for name in names if f"alertname: {name}\n" not in tests] == []


def test_promtool_accepts_the_metrics(prometheus_programs, device, module_folder):
    with exporter(module_folder / "vms") as url, urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read()
    done = subprocess.run(
        [*prometheus_programs.command("promtool"), "check", "metrics"], input=text, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
