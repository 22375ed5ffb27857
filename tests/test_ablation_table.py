"""The table of an ablation: which figures are read, what intervals are known to be, and what the pages say."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from report_world import Page

from cadiff import statistics
from cadiff.errors import DataError
from cadiff.files import write_json
from cadiff.launch import ablation_page as page
from cadiff.launch import ablation_table as table
from cadiff.launch import ablation_text as text
from cadiff.launch.ablation_table import Reading


def readings(*values):
    return {seed: Reading(value) for seed, value in enumerate(values, start=1)}


def per_stimulus(*rows):
    return {seed: Reading(float(np.mean(row)), np.asarray(row, dtype=float)) for seed, row in enumerate(rows, start=1)}


def test_t_intervals_are_those_of_the_tables():
    # Student's t at 97.5 %: 12.706 for 1 degree of freedom, 4.303 for 2, 2.776 for 4.
    told = table.estimate(readings(1.0, 2.0, 3.0), seed=0)
    assert told["value"] == 2.0 and told["interval"] == "t over 3 seeds"
    assert told["high"] - 2.0 == pytest.approx(4.30265 / np.sqrt(3), abs=1e-4)
    assert 2.0 - told["low"] == pytest.approx(4.30265 / np.sqrt(3), abs=1e-4)
    assert table.t_half_width(np.array([0.0, 2.0])) == pytest.approx(12.7062, abs=1e-3)
    assert table.t_half_width(np.array([1.0, 2, 3, 4, 5])) == pytest.approx(2.77645 * np.sqrt(2.5 / 5), abs=1e-4)
    assert told["seeds"] == {"1": 1.0, "2": 2.0, "3": 3.0}


def test_t_intervals_of_three_seeds_cover_the_truth_in_95_of_100():
    draws = np.random.default_rng(0).normal(5, 2, (1000, 3))
    covered = np.mean([abs(row.mean() - 5) <= table.t_half_width(row) for row in draws])
    assert 0.93 <= covered <= 0.97


def test_one_seed_has_no_interval_and_none_has_no_value():
    one, none = table.estimate(readings(0.5), seed=0), table.estimate({}, seed=0)
    assert (one["value"], one["low"], one["high"], one["interval"]) == (0.5, None, None, "none: 1 seed")
    assert (none["value"], none["seeds"], none["interval"]) == (None, {}, "nothing yet")


def test_differences_are_paired_by_seed():
    # Seeds differ much more than rows: unpaired, this difference would drown.
    reference, row = readings(1.0, 5.0, 9.0), readings(1.5, 5.6, 9.4)
    told = table.difference(row, reference, seed=0)
    assert told["value"] == pytest.approx(0.5)
    assert told["high"] - told["value"] == pytest.approx(table.t_half_width(np.array([0.5, 0.6, 0.4])))
    assert told["low"] > 0
    del row[2]
    assert table.difference(row, reference, seed=0)["seeds"] == pytest.approx({"1": 0.5, "3": 0.4})


def test_scores_per_stimulus_are_bootstrapped_over_stimuli():
    rows = np.random.default_rng(1).random((2, 30))
    told = table.estimate(per_stimulus(*rows), seed=3)
    means = statistics.resampled_means(rows.mean(0)[:, None], seed=3)[:, 0]
    assert (told["low"], told["high"]) == tuple(np.quantile(means, (0.025, 0.975)))
    assert told["value"] == pytest.approx(rows.mean())
    assert told["interval"] == "bootstrap over 30 stimuli (10000 resamples), mean of 2 seeds"
    assert table.estimate(per_stimulus(rows[0]), seed=3)["low"] is not None  # even of one seed


def test_differences_of_stimuli_are_paired_and_unlike_stimuli_refused():
    hard = np.random.default_rng(2).random(40)
    told = table.difference(per_stimulus(hard + 0.01), per_stimulus(hard), seed=1)
    assert told["low"] == pytest.approx(0.01) and told["high"] == pytest.approx(0.01)
    with pytest.raises(DataError, match="40 and 39 stimuli"):
        table.difference(per_stimulus(hard), per_stimulus(hard[1:]), seed=1)


def test_figures_are_those_of_the_weights_that_are_exported(tmp_path):
    lines = [{"step": step, "val/loss": 10.0 - step, "val/name": "x"} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(tmp_path / "summary.json", {"seconds": 7.0, "val_loss": None})
    assert table.reported(tmp_path) == {"seconds": 7.0, "step": 3.0, "val/loss": 7.0}
    write_json(tmp_path / "summary.json", {"selected": {"figure": "loss", "step": 2, "value": 8.0}})
    assert table.reported(tmp_path)["val/loss"] == 8.0


def test_repeated_rows_of_a_stimulus_count_once():
    scores = {
        "main": "cadiff",
        "methods": {"cadiff": {"ssim_rgb": {"value": 0.4}, "n-way-top1-best-column": {"value": 0.9}}},
        "rows": {"stimulus": [0, 1, 1], "scores": {"cadiff": {"ssim_rgb": [0.2, 0.5, 0.7]}}},
    }
    found = table._scored(scores, "ssim_rgb")
    assert found.value == 0.4 and found.stimuli_M.tolist() == pytest.approx([0.2, 0.6])
    assert table._scored(scores, "n-way-top1-best-column").stimuli_M is None


def test_a_score_that_the_judge_left_out_is_missing_and_said_so(tmp_path, monkeypatch):
    scores = {
        "main": "cadiff",
        "methods": {"cadiff": {"ssim_rgb": {"value": 0.4, "chance": 0.1}}},
        "notes": ["Class accuracy is left out: 2 of 2."],
        "rows": {"stimulus": [0, 1], "scores": {"cadiff": {"ssim_rgb": [0.3, 0.5]}}},
    }
    write_json(tmp_path / "scores" / "metrics.json", scores)
    cell, figures = SimpleNamespace(folder=tmp_path, runs=()), ["eval/ssim_rgb", "eval/class-accuracy"]
    plan = SimpleNamespace(
        cells=[cell],
        grid=SimpleNamespace(figures=figures, eval=SimpleNamespace(seed=1)),
        place=lambda figure: ("eval", figure.removeprefix("eval/")),
    )
    monkeypatch.setattr(table, "is_finished", lambda *_: True)
    found = table.read_figures(plan, cell)
    assert {figure: one.value for figure, one in found.items()} == {"eval/ssim_rgb": 0.4}
    assert table.chances(plan) == {"eval/ssim_rgb": 0.1}
    entries = {figure: table.estimate({1: found[figure]} if figure in found else {}, 0) for figure in figures}
    (said,) = table.unreported(plan, {"rows": [{"figures": entries}]})
    assert "'class-accuracy'. Class accuracy is left out: 2 of 2. They hold ssim_rgb" in said


def told(**changes):
    """A table of two rows, the second half done."""
    full, other = readings(0.80, 0.82, 0.81), readings(0.60, 0.61)
    rows = [
        {
            "id": "full", "label": "full", "published": 25.08, "settings": {"loss.fmri": 0.25}, "finished": [1, 2, 3],
            "missing": [], "failed": {}, "figures": {"val/x": table.estimate(full, 0)},
        },
        {
            "id": "no_fmri", "label": "without <fMRI> | term", "published": None, "settings": {"loss.fmri": 0.0},
            "finished": [1, 2], "missing": [3], "failed": {"3": "a rank\nended"},
            "figures": {"val/x": {**table.estimate(other, 0), "minus_reference": table.difference(other, full, 0)}},
        },
        {
            "id": "late", "label": "late", "published": None, "settings": {"loss.fmri": 1.0}, "finished": [],
            "missing": [1, 2, 3], "failed": {}, "figures": {"val/x": table.estimate({}, 0)},
        },
    ]  # fmt: skip
    published = {"figure": "accuracy in per cent", "source": "Table 2", "note": "Not comparable."}
    return {
        "name": "tiny", "seeds": [1, 2, 3], "better": "higher", "reference": "full", "figures": ["val/x"],
        "chain": ["phase2"], "chance": {"val/x": 0.5}, "published": published, "rows": rows, **changes,
    }  # fmt: skip


def test_a_difference_is_called_only_where_its_interval_leaves_out_0():
    assert text.verdict({"value": -0.2, "low": -0.3, "high": -0.1}, "higher") == "worse"
    assert text.verdict({"value": -0.2, "low": -0.3, "high": -0.1}, "lower") == "better"
    assert text.verdict({"value": 0.2, "low": -0.1, "high": 0.5}, "higher") == ""
    assert text.verdict({"value": 0.2, "low": None, "high": None}, "higher") == ""


def test_markdown_holds_means_intervals_differences_published_figures_and_failures():
    said = text.markdown(told())
    assert "| full | 3/3 | 0.81 [0.7852, 0.8348] |  | 25.08 |" in said
    assert "| without <fMRI> \\| term | 2/3 | 0.605 [0.5415, 0.6685] | -0.205 [-0.269, -0.141] worse |  |" in said
    assert "| late | 0/3 | not yet run |" in said
    assert "t over 2 seeds; t over 3 seeds" in said and "Source: Table 2. Not comparable." in said
    assert "Of 1 such comparisons" in said
    assert "- no_fmri/seed3: a rank ended" in said
    assert "| row | loss.fmri |" in said
    assert "| val/x (chance 0.5) | minus full |" in said
    assert "published" not in text.markdown(told(published=None))


def test_the_page_is_whole_escaped_and_draws_every_row_that_has_a_value():
    said = Page(page.page(told()))
    (drawing,) = said.all("svg")
    assert "full 0.81, interval 0.785 to 0.835" in drawing["aria-label"] and "late" not in drawing["aria-label"]
    circles = said.all("circle")
    assert len(circles) == 3 + 2 + 2  # a dot for each seed, and two means
    assert sum("level" in line.get("class", "") for line in said.all("line")) == 1
    assert (
        "without <fMRI> | term" in said.said
        and "worse" in said.said
        and "chance 0.5" in said.said
        and "not yet run" in said.said
    )
    assert "http" not in said.text.replace("http-equiv", "")


def test_a_plot_spans_all_seeds_and_intervals():
    rows = [("a", "a", table.estimate(readings(0.0, 1.0), 0))]
    drawn = Page(str(page.dots(rows, "a", "x")))
    whisker = next(line for line in drawn.all("line") if "whisker" in line.get("class", ""))
    assert page.LEFT < float(whisker["x1"]) < float(whisker["x2"]) < page.WIDTH


def test_a_figure_nobody_reported_is_named_with_its_neighbour(tmp_path, monkeypatch):
    write_json(tmp_path / "summary.json", {"val_loss": 1.0})
    run = SimpleNamespace(phase="phase2", folder=tmp_path)
    plan = SimpleNamespace(
        cells=[SimpleNamespace(runs=(run,))],
        grid=SimpleNamespace(figures=["val_los"]),
        place=lambda figure: ("phase2", figure),
    )
    rows = [{"figures": {"val_los": table.estimate({}, 0)}}]
    monkeypatch.setattr(table, "is_finished", lambda *_: True)
    assert "Did you mean 'val_loss'?" in table.unreported(plan, {"rows": rows})[0]
    rows[0]["figures"]["val_los"] = table.estimate(readings(1.0), 0)
    assert table.unreported(plan, {"rows": rows}) == []
