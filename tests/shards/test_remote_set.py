"""A packed set behind a URL gives the same batches as the folder, through a cache that may be smaller than the set."""

import numpy as np
import pytest
from test_ledger import ledger, make, pack_wide

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CADIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_remote_set_streams_like_the_folder(tmp_path, cache):
    ds = pack_wide(tmp_path / "set")
    far = Dataset(f"file://{tmp_path / 'set'}")
    assert far.hash == ds.hash and str(far.folder).startswith("file://")
    assert not list(cache.rglob("fmri-*.tar"))  # nothing is fetched before it is needed
    for order in ("random", "window"):
        assert ledger(make(far, order), 0, 30) == ledger(make(ds, order), 0, 30)
    assert len(list(cache.rglob("fmri-*.tar"))) == 1
    np.testing.assert_array_equal(far.signals(np.arange(20), 32), ds.signals(np.arange(20), 32))


def test_a_cache_without_room_for_a_shard_says_so(tmp_path, cache):
    pack_wide(tmp_path / "set")
    far = Dataset(f"file://{tmp_path / 'set'}", cache_bytes=40_000)
    with pytest.raises(ConfigError, match="fmri-000000"):
        far.signals(np.arange(3), 32)


def test_a_shard_that_does_not_match_the_manifest_is_refused(tmp_path, cache, monkeypatch):
    from cadiff.shards.remote import Remote

    monkeypatch.setattr(Remote, "sleep", staticmethod(lambda seconds: None))
    pack_wide(tmp_path / "set")
    path = tmp_path / "set" / "fmri-000000.tar"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"fmri-000000\.tar.*sha256"):
        Dataset(f"file://{tmp_path / 'set'}").signals(np.arange(3), 32)
    with pytest.raises(DataError, match="nowhere"):
        Dataset(f"file://{tmp_path / 'nowhere'}")
