"""The parts of the report: reading run folders, markup, axes, curves, masked signals and pictures."""

import numpy as np
import pytest
from report_world import Page, make_run

from cadiff.report import ReportContent, collect_run, write_report
from cadiff.report.axes import Axis, label, linear_ticks, log_ticks, spanning
from cadiff.report.html import Html, join, tag
from cadiff.report.pictures import as_uint8, data_uri
from cadiff.report.plots import Series, curves, masked_signal, stretches
from cadiff.report.training import duration


def test_collect_run_reads_a_finished_run(tmp_path):
    run = collect_run(make_run(tmp_path / "run"))
    assert (run.name, run.phase, run.problems) == ("p1", "phase1", [])
    assert len(run.history) == 24 and run.summary["steps"] == 20 and run.preview["signal"].shape == (3, 300)
    assert run.card["lineage"]["data"] == ["d" * 64] and len(run.card_hash) == 64
    assert run.settings["optim.lr"] == 0.001


def test_an_unfinished_run_is_reported_as_such(tmp_path):
    folder = make_run(tmp_path / "run")
    for name in ("summary.json", "preview.npz", "export/card.json"):
        (folder / name).unlink()
    with open(folder / "metrics.jsonl", "a") as handle:
        handle.write('[1]\n{"step": 21, "train/lo')
    run = collect_run(folder)
    said = " ".join(run.problems)
    for text in ("has not finished", "no finished export", "preview.npz is missing", "cut after 24 lines"):
        assert text in said
    page = Page(write_report(tmp_path / "r.html", ReportContent(title="x", runs=[run])).read_text())
    assert "20 so far" in page.said and "2.1 → 0.002394" in page.said and "no export" in page.said


def test_damaged_parts_become_problems_and_no_pickle_is_read(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "job.toml").write_text("phase = [")
    (folder / "summary.json").write_text("[1]")
    np.savez(folder / "preview.npz", signal=np.array([{"a": 1}], dtype=object))
    said = " ".join(collect_run(folder).problems)
    for text in ("job.toml is damaged", "summary.json is damaged", "preview.npz is damaged"):
        assert text in said


def test_text_is_escaped_unless_it_is_markup_already():
    assert tag("p", "<b>", Html("<i></i>"), 3, None, False) == "<p>&lt;b&gt;<i></i>3</p>"
    assert tag("a", class_="x", data_key='"', hidden=True, title=None) == '<a class="x" data-key="&quot;" hidden></a>'
    assert tag("br") == "<br>" and join(["a", "b"], between=", ") == "a, b"


def test_log_axis_appears_only_where_values_span_decades():
    assert spanning([1, 100], 0, 1, may_log=True).log
    assert not spanning([1, 5], 0, 1, may_log=True).log and not spanning([0, 100], 0, 1, may_log=True).log
    axis = Axis(1, 100, 0, 10, log=True)
    assert (axis.at(1), axis.at(10), axis.at(100)) == pytest.approx((0, 5, 10))
    assert spanning([2, 2], 0, 1).low < 2 < spanning([2, 2], 0, 1).high


def test_ticks_are_round_and_inside():
    assert linear_ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert linear_ticks(-3.2, 7.9) == [0, 5]
    assert log_ticks(0.03, 3) == [0.05, 0.1, 0.2, 0.5, 1, 2]
    assert log_ticks(1e-4, 10) == [1e-4, 1e-3, 1e-2, 0.1, 1, 10]
    assert label(2500) == "2.5k" and label(0.00012) == "0.00012"


def test_curves_skip_what_is_not_finite():
    series = [Series("a", [(1, 2.0), (2, float("nan")), (3, 1.0), (4, float("inf"))])]
    drawing = curves(series, x_title="x", y_title="y", description="d")
    assert "nan" not in drawing and "inf" not in drawing and drawing.count("<circle") == 2


def test_hidden_stretches_are_shaded_and_predicted():
    assert stretches(np.array([1, 1, 0, 0, 1], bool)) == [(0, 2), (4, 5)]
    signal = np.linspace(-1, 1, 50)
    visible = signal.copy()
    visible[10:20] = visible[30:45] = np.nan
    drawing = masked_signal(signal, visible, signal, "d")
    assert drawing.count('class="hidden"') == 2 and drawing.count('class="line c0"') == 2
    assert "nan" not in masked_signal(np.full(4, np.nan), np.full(4, np.nan), np.full(4, np.nan), "d")


def test_preview_pictures_of_any_usual_range_become_bytes():
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8), dtype=np.uint8)
    image[0, 0, 0, :2] = 0, 255
    for other in (image, image.astype(np.float32), image / np.float32(255), image / np.float32(127.5) - 1):
        assert np.array_equal(as_uint8(other), image)
    assert as_uint8(np.full((1, 3, 2, 2), np.nan, np.float32)).max() == 0


def test_small_plain_pictures_are_exact_and_heavy_ones_are_jpeg():
    assert data_uri(np.zeros((3, 64, 64), np.uint8)).startswith("data:image/png;base64,")
    noise = np.random.default_rng(0).integers(0, 256, (3, 300, 200), dtype=np.uint8)
    assert data_uri(noise).startswith("data:image/jpeg;base64,")
    assert len(data_uri(noise)) < 40_000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "not recorded"), (4.25, "4.2 s"), (59, "59 s"), (200, "3 min 20 s"), (7260, "2 h 1 min")],
)
def test_durations_read_like_speech(seconds, text):
    assert duration(seconds) == text
