"""Sets behind URLs: downloaded once, checked, tried again, and safe to kill."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from remote_world import CAP, DATA, digest, get, kept, temporary, wait_until

from cadiff.errors import ConfigError, DataError
from cadiff.shards.remote import DELAYS_S, Remote, is_url

ROOT = Path(__file__).resolve().parents[2]
FETCH = """
import sys
from pathlib import Path
from cadiff.shards.remote import Remote
url, cache, size, digest = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
print(Remote(url, Path(cache), 10**9).file("a.tar", int(size), digest).read_bytes().hex())
"""


def start(site, cache: Path) -> subprocess.Popen:
    """A process that fetches a.tar when it is told to go."""
    arguments = [site.url, str(cache), str(len(DATA)), digest(DATA)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    return subprocess.Popen([sys.executable, "-c", FETCH, *arguments], **pipes)


def go(process: subprocess.Popen) -> None:
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """Pauses between tries are noted instead of slept."""
    naps: list[float] = []
    monkeypatch.setattr(Remote, "sleep", staticmethod(naps.append))
    return naps


def test_only_urls_are_urls():
    assert all(is_url(text) for text in ("s3://bucket/god", "file:///data/god", "https://x.org/god", "memory://god"))
    assert not any(is_url(folder) for folder in ("packed/god", "/data/s3:/god", "C:/god", "", Path("s3:/god")))


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_set_is_read_through_its_folder_in_the_cache(scheme, tmp_path):
    url = f"file://{tmp_path}/far" if scheme == "file" else f"memory://{tmp_path.name}/far"
    far = fsspec.filesystem(scheme)
    far.makedirs(url)
    for name, data in (("manifest.json", b"{}"), ("a.tar", DATA), ("empty.tar", b"")):
        far.pipe_file(f"{url}/{name}", data)
    remote = Remote(url, tmp_path / "cache", CAP)
    assert remote.root == tmp_path / "cache" / digest(url.encode())[:16]
    assert remote.small("manifest.json").read_bytes() == b"{}"
    assert get(remote, "a.tar", DATA) == DATA and get(remote, "empty.tar", b"") == b""
    assert remote.file("a.tar", len(DATA), digest(DATA)) == remote.root / "a.tar"
    assert kept(tmp_path / "cache") == {"manifest.json", "a.tar", "empty.tar"} and not temporary(tmp_path)


def test_a_file_is_asked_for_once(site, tmp_path):
    assert get(Remote(site.url, tmp_path, CAP), "a.tar", DATA) == DATA
    assert get(Remote(site.url + "/", tmp_path, CAP), "a.tar", DATA) == DATA
    assert site.events == ["get a.tar", "end a.tar"]


def test_processes_of_a_node_share_one_download(site, tmp_path):
    site.pause_s = 0.05
    processes = [start(site, tmp_path) for _ in range(2)]
    for process in processes:
        go(process)
    assert get(Remote(site.url, tmp_path, CAP), "a.tar", DATA) == DATA
    for process in processes:
        assert process.communicate()[0] == DATA.hex() + "\n"
    assert site.events == ["get a.tar", "end a.tar"]


@pytest.mark.parametrize("fault", ["flip", "cut", "busy", "more"])
def test_a_spoiled_transfer_is_tried_again(fault, site, naps, tmp_path, caplog):
    site.faults = [fault, fault]
    with caplog.at_level(logging.WARNING):
        assert get(Remote(site.url, tmp_path, CAP), "a.tar", DATA) == DATA
    assert naps == [0.5, 1.0]
    told = [record.getMessage() for record in caplog.records if record.name == "cadiff.shards.remote"]
    reason = {
        "flip": "found 10,240 bytes with",
        "cut": "ClientPayload",
        "busy": "503",
        "more": "more than 10,240 bytes",
    }
    assert len(told) == 2 and all(f"{site.url}/a.tar" in line and reason[fault] in line for line in told)


@pytest.mark.parametrize("fault", ["flip", "cut", "busy"])
def test_after_the_last_try_the_error_says_what_was_expected(fault, site, naps, tmp_path):
    site.faults = [fault] * 100
    with pytest.raises(
        DataError, match=f"{site.url}/a.tar: found .*; expected 10,240 bytes with sha256 {digest(DATA)}"
    ):
        get(Remote(site.url, tmp_path, CAP), "a.tar", DATA)
    assert naps == list(DELAYS_S) == [0.5, 1, 2, 4, 8] and site.events.count("get a.tar") == 6
    assert not kept(tmp_path) and not temporary(tmp_path)


@pytest.mark.parametrize("scheme", ["file", "memory"])
@pytest.mark.parametrize("found", [DATA[::-1], DATA[:-1], DATA + b"x"])
def test_what_lies_here_and_differs_is_not_read_again(scheme, found, naps, tmp_path, caplog):
    url = f"{scheme}://{tmp_path}/far"
    far = fsspec.filesystem(scheme)
    far.makedirs(url)
    far.pipe_file(f"{url}/a.tar", found)
    with pytest.raises(DataError, match=rf"{url}/a\.tar: found .*; expected 10,240 bytes .*`cadiff shards repair"):
        get(Remote(url, tmp_path / "cache", CAP), "a.tar", DATA)
    assert naps == [] and not caplog.records and not temporary(tmp_path / "cache")


def test_what_lies_here_and_cannot_be_read_is_tried_again(naps, tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(DATA)
    opened, stale = fsspec.filesystem("file").__class__.open, [OSError(116, "Stale file handle")] * 2

    def opens(self, *args, **how):
        if stale:
            raise stale.pop()
        return opened(self, *args, **how)

    monkeypatch.setattr(fsspec.filesystem("file").__class__, "open", opens)
    assert get(Remote(f"file://{tmp_path}", tmp_path / "cache", CAP), "a.tar", DATA) == DATA
    assert naps == [0.5, 1.0]


def test_a_server_that_does_not_answer_is_tried_again_too(site, naps, tmp_path):
    site.server.server_close()
    with pytest.raises(DataError, match=r"found ClientConnectorError .* tried 6 times"):
        Remote(site.url, tmp_path, CAP).small("manifest.json")
    assert naps == list(DELAYS_S)


def test_what_is_not_there_is_not_waited_for(site, naps, tmp_path):
    with pytest.raises(DataError, match=r"manifest.json: no such file. Check the URL"):
        Remote(site.url, tmp_path, CAP).small("manifest.json")
    assert naps == [] and site.events == ["get manifest.json"]


def test_a_changed_manifest_is_noticed_and_old_shards_are_not_used(site, tmp_path):
    site.files["manifest.json"] = b"old"
    before = Remote(site.url, tmp_path, CAP)
    assert before.small("manifest.json").read_bytes() == b"old" and get(before, "a.tar", DATA) == DATA
    site.files |= {"manifest.json": b"new", "a.tar": DATA[::-1]}
    assert before.small("manifest.json").read_bytes() == b"old"  # an open set does not change under its reader
    after = Remote(site.url, tmp_path, CAP)
    assert after.small("manifest.json").read_bytes() == b"new" and get(after, "a.tar", DATA[::-1]) == DATA[::-1]
    assert site.events.count("get manifest.json") == 2 and site.events.count("get a.tar") == 2


def test_a_killed_downloader_leaves_nothing_broken(site, tmp_path):
    site.pause_s = 0.3
    killed, waiting = start(site, tmp_path), start(site, tmp_path)
    go(killed)
    wait_until(lambda: site.events and temporary(tmp_path))
    go(waiting)
    site.pause_s = 0.0
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.communicate()[0] == "" and temporary(tmp_path)
    assert waiting.communicate(timeout=20)[0] == DATA.hex() + "\n"
    assert site.events.count("get a.tar") == 2
    assert kept(tmp_path) == {"a.tar"} and not temporary(tmp_path)


@pytest.mark.parametrize("name", ["../a.tar", "x/a.tar", "/etc/passwd", "..", ".ok", "", "a\n", "a" * 101, "a\0"])
def test_names_that_lead_elsewhere_are_refused(name, tmp_path):
    remote = Remote("memory://x", tmp_path / "cache", CAP)
    with pytest.raises(DataError, match="not a file's name"):
        remote.file(name, 1, "0" * 64)
    with pytest.raises(DataError, match="not a file's name"):
        remote.small(name)


@pytest.mark.parametrize("url, package, extra", [("s3://b/x", "s3fs", "s3"), ("gs://b/x", "gcsfs", "gs")])
def test_a_missing_package_is_named(url, package, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    scheme = url.split("/")[0]
    with pytest.raises(ConfigError, match=rf"{scheme}// needs the package {package}: pip install 'cadiff\[{extra}\]'"):
        Remote(url, tmp_path, CAP)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_missing_package_for_the_web_is_named(scheme, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ConfigError, match=rf"{scheme}:// needs the package aiohttp: pip install 'cadiff\[http\]'"):
        Remote(f"{scheme}://x.org/god", tmp_path, CAP)


@pytest.mark.parametrize("url", ["ftp://x.org/god", "packed/god", "memory://", "http://x.org/god?key=1"])
def test_other_urls_are_refused(url, tmp_path):
    with pytest.raises(ConfigError, match="URL"):
        Remote(url, tmp_path, CAP)


def test_passwords_stay_out_of_messages(site, naps, tmp_path, caplog):
    site.faults = ["busy"] * 100
    with pytest.raises(DataError) as told:
        Remote(site.url.replace("http://", "http://me:secret@"), tmp_path, CAP).small("a.tar")
    assert "secret" not in str(told.value) + caplog.text and "127.0.0.1" in str(told.value)
