"""Debian packages in a folder: no root, no chroot, no debootstrap; the machine's own packages stay as they are.

apt runs with a private state (its own lists, its own empty dpkg status, its own sources) and resolves and downloads;
the packages are then unpacked with dpkg-deb.  The mirror is the one in the machine's own apt configuration, or
$VIRTSERIAL_DEBIAN_MIRROR; the machine's apt.conf (proxies and the like) stays in force.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from virtserial.rig.cache import RigUnavailable
from virtserial.rig.progress import announce, follow, size_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

APT_FOLDER = Path("/etc/apt")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
RELEASES = ("bullseye", "bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable")


@dataclass(frozen=True, slots=True)
class AptSource:
    """One `deb` entry of an apt configuration: an archive's URI and the suites taken from it."""

    uri: str
    suites: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where Debian is: the archive, and its security archive where one is known."""

    archive: str
    security: str | None = None


def parse_one_line_sources(text: str) -> Iterator[AptSource]:
    """The `deb [options] URI SUITE COMPONENT...` lines of a .list file (sources.list(5), one-line style)."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[[^\]]*\]\s*)?(\S+)\s+(\S+)", line)
        if match:
            yield AptSource(match[1], (match[2],))


def parse_deb822_sources(text: str) -> Iterator[AptSource]:
    """The enabled `Types: deb` stanzas of a .sources file (sources.list(5), deb822 style)."""
    without_comments = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", without_comments):
        fields: dict[str, list[str]] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields.get(name, []).extend(line.split())
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.split()
        if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"])[0].lower() not in ("no", "false"):
            for uri in fields.get("uris", []):
                yield AptSource(uri, tuple(fields.get("suites", [])))


def machine_sources(folder: Path = APT_FOLDER) -> list[AptSource]:
    """Every source the machine's apt has, in the order of sources.list, then sources.list.d by name."""
    sources: list[AptSource] = []
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        if path.is_file() and path.suffix in (".list", ".sources"):
            parse = parse_deb822_sources if path.suffix == ".sources" else parse_one_line_sources
            sources += parse(path.read_text(errors="replace"))
    return sources


def choose_mirror(sources: Iterable[AptSource], override: str | None) -> Mirror:
    """The Debian archive among an apt configuration's sources.

    Args:
        sources: the machine's sources.
        override: an archive's URI that wins (its security archive is then its neighbour `-security`), or None.

    Raises:
        RigUnavailable: there is no entry of Debian's.
    """
    if override:
        archive = override.rstrip("/")
        return Mirror(archive, f"{archive}-security")
    archive = security = ""
    for source in sources:
        for suite in source.suites:
            release, _, pocket = suite.replace("/", "-").partition("-")
            if release in RELEASES and pocket in ("", "updates", "backports"):
                archive = archive or source.uri.rstrip("/")
            elif release in RELEASES and pocket in ("security", "updates-security"):
                security = security or source.uri.rstrip("/")
    if not archive:
        raise RigUnavailable("no Debian archive in this machine's apt configuration (set VIRTSERIAL_DEBIAN_MIRROR)")
    return Mirror(archive, security or None)


@dataclass(frozen=True, slots=True)
class PackageSet:
    """What to unpack from a release of Debian and its extra pockets.

    Attributes:
        release: the release's code name.
        wanted: packages, `name` or `name=version` for an exact pin.
        backports: whether to take them from the release's backports.
        security: whether the release's security archive is a source too.
        fallback: what to take when the archive has a pinned version no more: point releases drop the old ones.
    """

    release: str
    wanted: tuple[str, ...]
    backports: bool = False
    security: bool = False
    fallback: tuple[str, ...] = ()


def unpack(packages: PackageSet, folder: Path) -> None:
    """Downloads a package set with its dependencies and unpacks it into a folder; `packages.txt` there lists what came.

    Raises:
        RigUnavailable: no apt or dpkg-deb, no Debian archive known, or the download failed.
    """
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise RigUnavailable(f"{program} is not on this machine: Debian's packages cannot be fetched")
    mirror = choose_mirror(machine_sources(), os.environ.get("VIRTSERIAL_DEBIAN_MIRROR"))
    with tempfile.TemporaryDirectory(prefix="virtserial-apt-") as scratch:
        apt = _PrivateApt(Path(scratch), mirror, packages)
        archives = apt.download(folder.parent)
        for archive in archives:
            _run(["dpkg-deb", "-x", str(archive), str(folder)])
        names = sorted(archive.name.removesuffix(".deb").replace("%3a", ":") for archive in archives)
    (folder / "packages.txt").write_text("\n".join(names) + "\n")


class _PrivateApt:
    """apt with a state of its own in a scratch folder."""

    def __init__(self, folder: Path, mirror: Mirror, packages: PackageSet) -> None:
        self._folder = folder
        self._packages = packages
        self._archive = mirror.archive
        for name in ("lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        signed_by = f" [signed-by={KEYRING}]" if KEYRING.exists() else ""
        sources = [f"deb{signed_by} {mirror.archive} {packages.release} main"]
        if packages.backports:
            sources.append(f"deb{signed_by} {mirror.archive} {packages.release}-backports main")
        if packages.security and mirror.security:
            sources.append(f"deb{signed_by} {mirror.security} {packages.release}-security main")
        (folder / "sources.list").write_text("\n".join(sources) + "\n")
        settings = {
            "Dir::State": folder,
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder,
            "Dir::Cache::archives": folder / "archives",
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::Log": folder,
            "APT::Architecture": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Keep-Downloaded-Packages": "true",
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "30",
        }
        cleared = ("APT::Architectures", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success",
                   "DPkg::Post-Invoke", "DPkg::Pre-Install-Pkgs", "APT::Default-Release")
        lines = [f"#clear {name};" for name in cleared]
        lines += [f'{name} "{value}";' for name, value in settings.items()]
        (folder / "apt.conf").write_text("\n".join(lines) + "\n")

    def download(self, place: Path) -> list[Path]:
        """The .deb files of the wanted packages and all they depend on.

        Args:
            place: where they will be, for the announcement.
        """
        self._apt("update")
        try:
            self._install(self._packages.wanted, place)
        except RigUnavailable:
            if not self._packages.fallback:
                raise
            self._install(self._packages.fallback, place)
        return sorted((self._folder / "archives").glob("*.deb"))

    def _install(self, wanted: tuple[str, ...], place: Path) -> None:
        target = ["-t", f"{self._packages.release}-backports"] if self._packages.backports else []
        words = ["install", "--download-only", "--yes", *target, *wanted]
        announce(wanted[0].partition("=")[0], size_of(self._apt(*words, "--print-uris")), self._archive, place)
        reader, writer = os.pipe()
        command = ["apt-get", "-q", "-o", f"APT::Status-Fd={writer}", *words]
        with subprocess.Popen(
            command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, pass_fds=(writer,),
        ) as process:  # fmt: skip
            os.close(writer)
            with open(reader) as status:
                follow(status)
            _, errors = process.communicate()
        _check(command[:2] + words, process.returncode, errors)

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "APT_CONFIG": str(self._folder / "apt.conf"), "LC_ALL": "C"}

    def _apt(self, *arguments: str) -> str:
        return _run(["apt-get", "-q", *arguments], self._environment)


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    _check(command, done.returncode, done.stderr)
    return done.stdout


def _check(command: list[str], status: int, errors: str) -> None:
    if status:
        complaints = [line for line in errors.splitlines() if line.startswith(("E:", "dpkg-deb:"))]
        reason = (complaints or errors.splitlines() or ["no message"])[-1]
        raise RigUnavailable(f"{' '.join(command[:4])} failed: {reason.strip()}")
