"""The page is one whole file that loads nothing, escapes everything, and says what is missing."""

import re
from itertools import pairwise

import numpy as np
import pytest
from report_world import Page, made_metrics, made_pictures, make_run

from cadiff.errors import ConfigError, DataError
from cadiff.exports import export_hash, read_card
from cadiff.report import DataSource, Pictures, ReportContent, collect_run, report_runs, write_report

EVIL = "<script>alert(\"x\")</script> & 'quoted' <img src=x onerror=y>"


@pytest.fixture
def page(tmp_path):
    one = make_run(tmp_path / "p1")
    parent = export_hash(read_card(one))
    two = make_run(tmp_path / "p2", "p2", "phase2", parents={"fmri": parent}, data=("e" * 64,), preview=False)
    content = ReportContent(
        title="A small run", summary="What it is.", metrics=made_metrics(), pictures=made_pictures(),
        runs=[collect_run(one), collect_run(two)], data=[DataSource("hcp", "d" * 64, "3 subjects")],
        ceiling={"two-way-features": 0.97}, sampling={"scheduler": "plms", "steps": [1, 2]},
        environment={"Packages": {"torch": "2.13"}}, notes=["A note of ours."],
    )  # fmt: skip
    return Page(write_report(tmp_path / "report.html", content).read_text())


def test_page_is_well_formed_with_language_title_and_headings_in_order(page):
    assert page.text.startswith("<!doctype html>")
    assert page.all("html")[0]["lang"] == "en" and "<title>A small run</title>" in page.text
    levels = [int(name[1]) for name, _ in page.tags if re.fullmatch(r"h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_page_loads_nothing_from_anywhere(page):
    assert "://" not in page.text
    assert not page.all("link") and all("src" not in attributes for attributes in page.all("script"))
    assert all(attributes["src"].startswith("data:image/") for attributes in page.all("img"))
    assert all(attributes["href"].startswith("#") for attributes in page.all("a"))
    policies = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policies[0]
    assert "url(" not in page.text and "@import" not in page.text


def test_every_picture_has_words_and_every_drawing_a_label(page):
    assert len(page.all("img")) > 24 * 4
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert page.all("svg") and all(attributes["aria-label"] for attributes in page.all("svg"))


def test_table_headers_say_what_they_head_and_wide_tables_scroll_by_themselves(page):
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    boxes = [attributes for attributes in page.all("div") if attributes.get("class") == "scroll"]
    assert len(boxes) == len(page.all("table")) and all(box["tabindex"] == "0" for box in boxes)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")


def test_menu_links_lead_to_sections(page):
    targets = {attributes["href"][1:] for attributes in page.all("a")}
    assert targets == {attributes["id"] for attributes in page.all("section")}
    assert {"result", "reconstructions", "scores", "training", "lineage", "configuration", "environment"} <= targets


def test_scores_stand_beside_chance_baseline_ceiling_and_shuffled(page):
    for text in (
        "0.70 [0.60, 0.80] lies above chance 0.50", "Shuffled fMRI", "0.970", "0.600 to 0.800",
        "CADiff minus ridge", "A note of ours.", "two-way-features/1", "the demo's own classifier",
    ):  # fmt: skip
        assert text in page.said, text


def test_lineage_names_the_parent_and_the_data_by_hash(page):
    assert "hcp dddddddddddd" in page.said  # run p1 read it
    assert re.search(r"p2 e{12} p1 [0-9a-f]{12}", page.said)  # p2 read something outside this page and began from p1


def test_missing_preview_is_said_and_the_rest_is_drawn(page):
    assert "preview.npz is missing" in page.said
    assert "Phase 2: cross-modal tuning" in page.said
    assert "Correlation over all hidden voxels 1.00" in page.said and "First 240 of 300 voxels" in page.said


def test_grid_shows_best_and_worst_in_order_of_the_first_score(page):
    scores = np.array(made_metrics()["rows"]["scores"]["cadiff"]["two-way-features"])
    shown = [int(found) for found in re.findall(r"\d+\. class (\d+)", page.said)]
    assert shown[0] == scores.argmax()
    assert shown[17] == scores.argmin()  # last of best, middle, worst
    assert shown[18:] == np.argsort(-scores).tolist()  # the full list
    listed = [attributes for attributes in page.all("ol") if "data-keys" in attributes]
    assert listed[0]["data-keys"] == "two-way-features two-way-pixcorr ssim-rgb"
    assert all("data-ssim-rgb" in attributes for attributes in page.all("li")[-24:])


def test_only_the_main_method_shows_several_samples(page):
    captions = [attributes["alt"].split(":")[0] for attributes in page.all("img")]
    assert {"CADiff 1", "CADiff 2", "Ridge", "Shuffled fMRI"} <= set(captions) and "Shuffled fMRI 2" not in captions


def test_every_text_from_outside_is_escaped(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "job.toml").write_text(f"phase = 'phase1'\nname = '''{EVIL}'''\n[x]\nkey = '''{EVIL}'''\n")
    metrics, pictures = made_metrics(names=("cadiff", EVIL)), made_pictures()
    metrics["classifier"]["note"] = metrics["interval"] = EVIL
    pictures = Pictures(pictures.truth, {"cadiff": pictures.truth[:, None], EVIL: pictures.truth[:, None]}, [EVIL] * 24)
    content = ReportContent(
        title=EVIL, summary=EVIL, metrics=metrics, pictures=pictures, runs=[collect_run(run)],
        data=[DataSource(EVIL, EVIL, EVIL)], sampling={EVIL: {EVIL: EVIL}}, environment={EVIL: {EVIL: [EVIL]}},
        notes=[EVIL],
    )  # fmt: skip
    page = Page(write_report(tmp_path / "evil.html", content).read_text())
    assert len(page.all("script")) == 1 and "onerror=y" in page.said
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert page.text.count("<script>alert") == 0


def test_same_content_gives_the_same_bytes(tmp_path):
    content = ReportContent(title="x", metrics=made_metrics(), pictures=made_pictures())
    one, two = (write_report(tmp_path / name, content).read_bytes() for name in ("a.html", "b.html"))
    assert one == two


def test_an_empty_report_says_that_nothing_was_evaluated(tmp_path):
    page = Page(write_report(tmp_path / "r.html", ReportContent(title="x")).read_text())
    assert "There is no evaluation in this report" in page.said and "Not recorded." in page.said


def test_pictures_without_scores_keep_their_order(tmp_path):
    content = ReportContent(
        title="x", pictures=Pictures(made_pictures(4).truth, {"cadiff": made_pictures(4).methods["cadiff"]})
    )
    page = Page(write_report(tmp_path / "r.html", content).read_text())
    assert re.findall(r"\d+\. test sample (\d+)", page.said) == ["1", "2", "3", "4"]


def test_a_run_that_only_just_began_has_no_curve(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "job.toml").write_text('name = "n"\nphase = "phase3"\n')
    page = Page(report_runs([folder], tmp_path / "r.html").read_text())
    assert "Nothing recorded yet." in page.said and "metrics.jsonl is missing" in page.said


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected a run folder"):
        collect_run(tmp_path)
    with pytest.raises(ConfigError, match="at least one run folder"):
        report_runs([], tmp_path / "r.html")


def test_runs_of_one_phase_share_a_plot_and_their_differing_keys_are_listed(tmp_path):
    one, two = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run", lr=0.5)
    page = Page(report_runs([one, two], tmp_path / "r.html", made_metrics()).read_text())
    assert "2 runs side by side" in page.said
    assert "a/run, training" in page.said and "b/run, validation" in page.said
    assert sum("Loss curve" in attributes["aria-label"] for attributes in page.all("svg")) == 1
    assert "Where the phase1 runs differ" in page.said and "optim.lr 0.001 0.5" in page.said
