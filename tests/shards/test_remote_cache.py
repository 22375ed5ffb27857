"""The cache of sets behind URLs: stays within its size, trusts what was checked, touches nothing else."""

import os
import resource
import threading

import pytest
from remote_world import CAP, DATA, digest, get, kept, temporary, wait_until

from cadiff.errors import ConfigError, DataError
from cadiff.shards.remote import Remote, cache_folder


@pytest.fixture
def many(tmp_path):
    """A file:// set of five files of 1,000 bytes each: name -> content."""
    files = {f"{name}.tar": name.encode() * 1000 for name in "abcde"}
    (tmp_path / "far").mkdir()
    for name, data in files.items():
        (tmp_path / "far" / name).write_bytes(data)
    return files


def test_the_least_recently_used_file_of_any_set_makes_room(many, tmp_path):
    cache, other = tmp_path / "cache", f"file://{tmp_path}/./far"
    first = Remote(f"file://{tmp_path}/far", cache, 3000)
    second = Remote(other, cache, 3000)
    for remote, name, used in ((first, "a.tar", 300), (second, "b.tar", 100), (first, "c.tar", 200)):
        get(remote, name, many[name])
        os.utime(remote.root / f".{name}.ok", (used, used))
    get(second, "d.tar", many["d.tar"])
    assert kept(cache) == {"a.tar", "c.tar", "d.tar"}
    get(first, "c.tar", many["c.tar"])  # a use counts
    get(first, "e.tar", many["e.tar"])
    assert kept(cache) == {"c.tar", "d.tar", "e.tar"}


def test_files_of_this_process_are_evicted_last(many, tmp_path):
    cache, url = tmp_path / "cache", f"file://{tmp_path}/far"
    remote = Remote(url, cache, 2000)
    get(remote, "a.tar", many["a.tar"])
    os.utime(remote.root / ".a.tar.ok", (100, 100))
    (remote.root / "b.tar").write_bytes(many["b.tar"])  # as another process leaves it, and newer
    get(remote, "c.tar", many["c.tar"])
    assert kept(cache) == {"a.tar", "c.tar"}
    get(remote, "d.tar", many["d.tar"])  # nothing else is left
    assert kept(cache) == {"c.tar", "d.tar"}


def test_an_evicted_file_stays_readable_where_it_is_open(many, tmp_path):
    remote = Remote(f"file://{tmp_path}/far", tmp_path / "cache", 1000)
    with open(remote.file("a.tar", 1000, digest(many["a.tar"])), "rb") as handle:
        get(remote, "b.tar", many["b.tar"])
        assert kept(tmp_path / "cache") == {"b.tar"} and handle.read() == many["a.tar"]


def test_what_is_not_ours_is_never_evicted(many, tmp_path):
    cache = tmp_path / "cache"
    (cache / "thesis").mkdir(parents=True)
    (cache / "thesis" / "draft.tex").write_bytes(bytes(5000))
    (cache / "notes.txt").write_bytes(bytes(5000))
    remote = Remote(f"file://{tmp_path}/far", cache, 1000)
    for name in "ab":
        get(remote, f"{name}.tar", many[f"{name}.tar"])
    assert (cache / "thesis" / "draft.tex").exists() and (cache / "notes.txt").exists()


def test_downloads_at_the_same_time_stay_within_the_cap_together(site, tmp_path):
    site.files["b.tar"], site.pause_s = DATA[::-1], 0.03
    cap = len(DATA) * 3 // 2
    other = threading.Thread(target=lambda: get(Remote(site.url, tmp_path, cap), "a.tar", DATA))
    other.start()
    wait_until(lambda: site.events)
    assert get(Remote(site.url, tmp_path, cap), "b.tar", DATA[::-1]) == DATA[::-1]
    other.join()
    assert site.events == ["get a.tar", "end a.tar", "get b.tar", "end b.tar"] and kept(tmp_path) == {"b.tar"}


def test_a_file_beyond_the_cap_is_refused_before_anything_is_evicted(many, tmp_path):
    remote = Remote(f"file://{tmp_path}/far", tmp_path / "cache", 1500)
    get(remote, "a.tar", many["a.tar"])
    with pytest.raises(ConfigError, match=r"b.tar: 1,501 bytes, more than the whole cache of 1,500 bytes"):
        remote.file("b.tar", 1501, "0" * 64)
    assert kept(tmp_path / "cache") == {"a.tar"}


def test_what_a_killed_downloader_left_gives_room(many, tmp_path):
    remote = Remote(f"file://{tmp_path}/far", tmp_path / "cache", 1000)
    left = remote.root / ".e.tar.123.tmp"
    left.write_bytes(bytes(700))
    get(remote, "a.tar", many["a.tar"])
    assert not left.exists() and kept(tmp_path / "cache") == {"a.tar"}


def test_an_unmarked_file_is_hashed_before_it_is_trusted(site, tmp_path):
    remote = Remote(site.url, tmp_path, CAP)
    get(remote, "a.tar", DATA)
    mark = remote.root / ".a.tar.ok"
    mark.unlink()
    assert get(remote, "a.tar", DATA) == DATA and site.events.count("get a.tar") == 1
    assert mark.read_text() == digest(DATA)
    mark.unlink()
    (remote.root / "a.tar").write_bytes(DATA[::-1])
    assert get(remote, "a.tar", DATA) == DATA and site.events.count("get a.tar") == 2


def test_a_full_disk_ends_in_one_line(site, tmp_path):
    remote = Remote(site.url, tmp_path, CAP)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # the kernel refuses to write beyond
    try:
        with pytest.raises(DataError, match=r"a.tar: the cache cannot be used \(File too large\). Free space"):
            get(remote, "a.tar", DATA)
        site.files["manifest.json"] = DATA
        with pytest.raises(DataError, match=r"manifest.json: the cache cannot be used"):
            remote.small("manifest.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not kept(tmp_path) and not temporary(tmp_path)


def test_a_cache_that_cannot_be_made_is_a_mistake_of_the_user(tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(ConfigError, match="Name a folder you can write with CADIFF_CACHE"):
        Remote("memory://x", tmp_path / "cache", CAP)


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("CADIFF_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("CADIFF_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/cadiff/shards"
