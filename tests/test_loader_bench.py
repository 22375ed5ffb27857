"""The loader benchmark measures every contender beside its limit, and writes JSON and a page."""

import json

import pytest

from cadiff.launch import loader_bench
from cadiff.launch.loader_page import write_page
from cadiff.shards.dataset import Dataset
from cadiff.shards.synthetic.loader_set import make_loader_set


class _Here:
    """A process pool that runs its work in this process: nothing has to be imported again."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, work, *arguments):
        answer = work(*arguments)
        return type("Done", (), {"result": lambda self: answer})()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = make_loader_set(tmp_path_factory.mktemp("bench") / "set", subjects=2, rows=40, voxels=40, pictures=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader_bench, "ProcessPoolExecutor", _Here)
        return loader_bench.measure(folder, 16, 0.05, [0, 1], lambda name: None)


def test_every_contender_is_measured_beside_its_limit(told):
    names = [entry["name"] for entry in told["contenders"]]
    assert names[:2] == ["kept in RAM, 0 workers", "kept in RAM, 1 workers"] and "pictures, 1 workers" in names
    assert told["machine"]["cores"] > 0 and told["machine"]["versions"]["torch"] and told["machine"]["processor"]
    assert "cold, window" in names and "stock webdataset, one frame a sample" in names
    for entry in told["contenders"]:
        assert entry["samples_per_s"] > 0 and entry["rss_mb"] > 50
        if "limit_per_s" in entry:
            assert entry["share_of_limit"] == pytest.approx(entry["samples_per_s"] / entry["limit_per_s"])
        if "cold" in entry["name"]:
            assert entry["share_of_disk"] == pytest.approx(entry["bytes_per_s"] / entry["disk_bytes_per_s"])
            assert entry["steady_share_of_disk"] == pytest.approx(
                entry["steady_bytes_per_s"] / entry["disk_bytes_per_s"]
            )


def test_the_page_shows_every_figure(told, tmp_path):
    write_page(tmp_path / "page.html", told)
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="bar"') == len(told["contenders"]) and "cold, window" in page
    assert json.dumps(told["samples"]) in page


def test_a_set_of_the_papers_shape_is_made_for_those_who_have_none(tmp_path):
    ds = Dataset(make_loader_set(tmp_path / "set", subjects=2, rows=20, voxels=40, pictures=3))
    assert len(ds) == 40 and ds.voxels == 40 and ds.images([0, 1, 2], 32).std() > 20
