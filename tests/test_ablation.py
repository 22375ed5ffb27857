"""`cadiff ablate`: a grid is checked to its last cell before anything runs, and its cells are done once each."""

import functools
import json
import shutil
from pathlib import Path

import pytest
from ablation_world import GRID, Trainer, grid_writer, run

from cadiff import judge
from cadiff.config import load_job
from cadiff.errors import ConfigError, DataError, Preempted
from cadiff.exports import read_card, save_export
from cadiff.files import write_json
from cadiff.launch import start
from cadiff.launch.ablation import CellsFailed, Clock
from cadiff.launch.ablation_cells import check_cells, plan_cells
from cadiff.launch.ablation_grid import read_grid
from cadiff.launch.ablation_state import state_of
from cadiff.launch.ablation_table import make_table
from cadiff.session import job_hash, parents
from cadiff.shards.dataset import Dataset

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@pytest.fixture
def grid(tmp_path, tiny_job):
    return grid_writer(tmp_path, tiny_job)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("seeds", "seed"), "unknown key 'seed'. Did you mean 'seeds'"),
        (("label", "lable"), "unknown key 'row.1.lable'. Did you mean 'label'"),
        (('"lower"', '"best"'), "better = 'best'"),
        (("[1, 2]", '["1"]'), "seeds.0 = '1'"),
        (("[1, 2]", "[1, 1]"), "seeds names 1 more than once"),
        (('id = "plain"', 'id = "full"'), "row names full more than once"),
        (('id = "plain"', 'id = "../plain"'), "row.1.id = '../plain'"),
        (('id = "plain"', 'id = "plain"\npublished = 1.5'), r"say in \[published\] which figure"),
        (('reference = "full"', 'reference = "ful"'), "no such row. Did you mean 'full'"),
        (("[[row]]", '[axes]\n"phase2.optim.lr" = [1e-3]\n[[row]]'), "exactly one of"),
        (('base = ["one.toml", "two.toml"]', 'base = ["one.toml"]'), "row 'plain' overrides phase2, but the chain is"),
        (("two.toml", "one.toml"), "names two configs of phase1"),
        (("two.toml", "three.toml"), "no such config file"),
        (("phase1:val", "phase3:val"), "'phase3:val/rebuild' is of phase3, but the chain is phase1, phase2"),
        (('"lower"', '"higher"'), r"of 'val/loss' lower is better, but better = 'higher'.*Set better = 'lower'"),
        (("val/loss", "eval/ssim_rgb"), r"need \[sample\] and \[eval\]"),
        (("[[row]]", "[sample]\n[eval]\n[[row]]"), "decodes with a phase 3"),
        (("cross.residual=false", "cross.residul=false"), "row 'plain': override .* Did you mean 'residual'"),
        (("cross.residual=false", "seed=7"), "overrides seed of phase2, which the grid gives"),
        (("cross.residual=false", "cross.residual=true"), "rows 'full' and 'plain' are the same experiment"),
    ],
)
def test_every_mistake_in_a_grid_is_named(grid, tmp_path, change, named):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=named):
        plan_cells(grid(GRID, change), tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted({*before, tmp_path / "grid.toml"})


def test_mistakes_of_all_rows_are_told_together(grid):
    text = GRID + '[[row]]\nid = "third"\nphase1 = ["optim.lr=fast"]\n'
    with pytest.raises(ConfigError, match=r"(?s)row 'plain'.*residul.*row 'third'.*optim.lr=fast"):
        plan_cells(grid(text, ("cross.residual", "cross.residul")))


def test_a_cell_is_a_chain_whose_jobs_start_from_each_other(grid, tmp_path):
    plan = plan_cells(grid(), tmp_path / "out")
    assert [cell.name for cell in plan.cells] == ["full/seed1", "plain/seed1", "full/seed2", "plain/seed2"]
    phase1, phase2 = plan.cells[3].runs
    assert phase2.folder == tmp_path / "out" / "plain" / "seed2" / "phase2"
    assert phase2.job.init.fmri == str(phase1.folder)
    assert (phase2.job.seed, phase2.job.name, phase2.job.cross.residual) == (2, "tiny_grid-plain-seed2", False)
    # No row changes phase 1, so each seed has one, in the folder of the row that comes first.
    assert phase1.folder == tmp_path / "out" / "full" / "seed2" / "phase1"
    assert len(plan.runs) == 6


def test_a_row_may_start_from_elsewhere_and_common_overrides_come_first(grid, tmp_path):
    text = GRID.replace("[[row]]", '[common]\nphase2 = ["optim.lr=1e-4", "optim.clip=0.1"]\n[[row]]', 1)
    path = grid(text, ('["cross.residual=false"]', """['init.fmri=""', "optim.lr=1e-5"]"""))
    scratch = plan_cells(path, tmp_path).cells[1].runs[1].job
    assert (scratch.init.fmri, scratch.optim.lr, scratch.optim.clip) == ("", 1e-5, 0.1)


def test_axes_span_their_product(grid, tmp_path):
    axes = (
        '[axes]\n"phase2.loss.image_mask" = [0.5, 0.75]\n"phase1.optim.lr" = [1e-3, 1e-4]\n"phase2.optim.lr" = [1e-5]\n'
    )
    head = GRID.partition("[[row]]")[0].replace('reference = "full"\n', "")
    plan = plan_cells(grid(head + axes), tmp_path)
    assert len(plan.cells) == 8
    assert plan.rows[1].id == "image_mask-0.5__phase1.optim.lr-0.0001__phase2.optim.lr-1e-05"
    assert plan.rows[1].title == "image_mask=0.5, phase1.optim.lr=0.0001, phase2.optim.lr=1e-05"
    phase1, phase2 = plan.cells[1].runs
    assert (phase1.job.optim.lr, phase2.job.optim.lr, phase2.job.loss.image_mask) == (1e-4, 1e-5, 0.5)
    with pytest.raises(ConfigError, match=r"does not say of which job\. Begin it with one of phase1, phase2"):
        plan_cells(grid(head + '[axes]\n"loss.image_mask" = [0.5]\n'))


def test_missing_data_stops_it_before_anything_runs(grid, tmp_path):
    plan = plan_cells(grid(GRID, ("cross.residual=false", "data.shards=['nowhere']")), tmp_path / "out")
    with pytest.raises(DataError, match="nowhere"):
        check_cells(plan)
    plan = plan_cells(grid(GRID, ("cross.residual=false", "init.fmri='gone'")), tmp_path / "out")
    with pytest.raises(DataError, match="gone"):
        check_cells(plan)
    plan = plan_cells(grid(GRID, ("cross.residual=false", "train.batch=9")), tmp_path / "out")
    with pytest.raises(ConfigError, match="does not divide the batch of 9 of tiny_grid-plain-seed1"):
        check_cells(plan, asked_ranks=2)
    assert not (tmp_path / "out").exists()


def test_cells_are_done_once_and_the_table_is_written_after_each(grid, tmp_path):
    plan, trainer = plan_cells(grid(), tmp_path / "out"), Trainer()
    _, written = run(plan, trainer)
    assert trainer.started == [
        "full/seed1/phase1", "full/seed1/phase2", "plain/seed1/phase2",
        "full/seed2/phase1", "full/seed2/phase2", "plain/seed2/phase2",
    ]  # fmt: skip
    assert len(written) == 4
    table = make_table(plan, {})
    assert table["chance"] == {"phase1:val/rebuild": 0.25}
    assert table["rows"][1]["figures"]["val/loss"]["seeds"] == {"1": 11.0, "2": 12.0}
    again = Trainer()
    _, written = run(plan, again)
    assert again.started == [] and written == []


def test_a_failed_cell_is_told_the_rest_goes_on_and_the_same_command_tries_it_again(grid, tmp_path):
    plan, trainer = plan_cells(grid(), tmp_path / "out"), Trainer()
    trainer.broken = {"full/seed1/phase1"}
    ablation, _ = run(plan, trainer)
    # Both cells of seed 1 need that phase 1; it is tried once.
    assert trainer.started == ["full/seed1/phase1", "full/seed2/phase1", "full/seed2/phase2", "plain/seed2/phase2"]
    assert ablation.failures == {
        "full/seed1": "a shard is damaged",
        "plain/seed1": "it needs the phase1 that failed in full/seed1.",
    }
    with pytest.raises(CellsFailed, match=r"(?s)2 of 4 cells failed; .* full/seed1: a shard is damaged") as problem:
        ablation.check()
    assert problem.value.exit_code != 0
    row = make_table(plan, ablation.failures)["rows"][0]
    assert (row["finished"], row["missing"], row["failed"]) == ([2], [1], {"1": "a shard is damaged"})
    again = Trainer()
    ablation, _ = run(plan, again)
    assert again.started == ["full/seed1/phase1", "full/seed1/phase2", "plain/seed1/phase2"]
    ablation.check()


def test_a_job_that_ends_without_a_finished_run_is_a_failure(grid, tmp_path):
    plan = plan_cells(grid(GRID, ("[1, 2]", "[1]")), tmp_path / "out")
    ablation, _ = run(plan, lambda *_, **__: None)
    assert "full/seed1/phase1: ended, but not as a run of these settings" in ablation.failures["full/seed1"]


def test_asked_to_stop_it_stops_and_goes_on_where_it_was(grid, tmp_path):
    plan, trainer = plan_cells(grid(), tmp_path / "out"), Trainer()
    trainer.stop_at = "plain/seed1/phase2"
    with pytest.raises(Preempted):
        run(plan, trainer)
    again = Trainer()
    run(plan, again)
    assert again.started == ["plain/seed1/phase2", "full/seed2/phase1", "full/seed2/phase2", "plain/seed2/phase2"]


def test_a_folder_of_other_settings_is_refused_and_left_alone(grid, tmp_path):
    run(plan_cells(grid(), tmp_path / "out"), Trainer())
    text = GRID.replace('["cross.residual=false"]', '["cross.residual=false", "optim.lr=0.1"]')
    changed = plan_cells(grid(text), tmp_path / "out")
    with pytest.raises(ConfigError, match="plain/seed1/phase2 and 1 more folders hold runs of other settings"):
        check_cells(changed)
    assert all(state_of(one) == "finished" for one in plan_cells(grid(), tmp_path / "out").runs)
    shutil.rmtree(tmp_path / "out" / "plain")
    check_cells(changed)


def test_a_run_that_started_from_other_weights_is_not_taken_for_finished(grid, tmp_path):
    plan = plan_cells(grid(), tmp_path / "out")
    run(plan, Trainer())
    phase1, phase2 = plan.cells[0].runs
    save_export(phase1.folder / "export", {}, {**read_card(phase1.folder), "steps": 1})
    assert (state_of(phase1), state_of(phase2)) == ("finished", "other")
    shutil.rmtree(phase1.folder)
    assert (state_of(phase1), state_of(phase2)) == ("new", "begun")  # the trainer will say


def test_the_clock_counts_each_kind_by_what_it_took():
    clock = Clock({Path("a"): "phase1", Path("b"): "phase1", Path("c"): "phase2", Path("d"): "phase2"})
    assert clock.left_s() is None and clock.describe() == "4 of 4 runs left | eta not known yet"
    clock.ended(Path("a"), 100.0)
    assert clock.left_s() == 300.0  # nothing known of phase 2: as long as the others
    clock.ended(Path("c"), 3600.0)
    assert clock.left_s() == 3700.0
    clock.ended(Path("d"))  # failed: gone, and no measure of anything
    assert clock.describe() == "1 of 4 runs left | eta 0h01m40s"


def test_a_whole_road_is_sampled_and_scored_in_every_cell(grid, chain, tmp_path, monkeypatch):
    """Training is faked with a finished phase 3; decoding, a hasty judge and the scores are real."""
    monkeypatch.setattr(judge, "fit_classifier", functools.partial(judge.fit_classifier, epochs=2))
    (tmp_path / "three.toml").write_text(
        (tmp_path / "two.toml").read_text().replace("phase2", "phase3").replace('name = "tiny"', 'name = "three"')
        + f'[init]\nprior = "{chain / "prior"}"\n'
    )
    text = GRID.replace("val/loss", "eval/two-way-pixcorr").replace('"lower"', '"higher"')
    text = text.replace("[[row]]", "[sample]\ncount = 1\nsteps = 2\nscheduler = 'ddim'\nlimit = 6\n[eval]\n[[row]]", 1)
    text = text.replace("[1, 2]", "[1]").replace('"two.toml"]', '"two.toml", "three.toml"]')
    plan, fake = plan_cells(grid(text), tmp_path / "out"), Trainer()
    check_cells(plan)

    def train(config, overrides, folder, *, phase, **rest):
        if phase != "phase3":
            return fake(config, overrides, folder, phase=phase, **rest)
        fake.started.append(folder.name)
        shutil.copytree(chain / "phase3", folder / "export")
        job = load_job(config, overrides, phase=phase)
        identity = {"job_hash": job_hash(job), "data": [Dataset(one).hash for one in job.data.shards]}
        write_json(folder / "identity.json", {**identity, "parents": parents(job)})
        write_json(folder / "summary.json", {"seconds": 1.0})

    ablation, written = run(plan, train)
    ablation.check()
    assert len(written) == 2
    table = make_table(plan, {})
    first, second = (row["figures"]["eval/two-way-pixcorr"] for row in table["rows"])
    assert table["chance"]["eval/two-way-pixcorr"] == 0.5
    assert "bootstrap over 6 stimuli" in first["interval"] and first["low"] <= first["value"] <= first["high"]
    assert second["minus_reference"] | {"seeds": 0} == {
        "value": 0.0, "low": 0.0, "high": 0.0, "interval": first["interval"], "seeds": 0,
    }  # fmt: skip
    started = list(fake.started)
    _, written = run(plan, train)
    assert fake.started == started and written == []


def test_the_shipped_grids_are_whole():
    table = {
        "1": (0, 1, 0.75, 0.75, 6, 12.52), "2": (1, 0, 0.75, 0.75, 6, 16.64), "3": (0.5, 1.5, 0.75, 0.75, 6, 17.68),
        "4": (1, 1, 0.75, 0.75, 6, 19.64), "5": (1.5, 0.5, 0.75, 0.75, 6, 19.76),
        "6": (0.25, 1.5, 0.75, 0.75, 6, 20.80),
        "7": (1, 1, 0.5, 0.75, 6, 15.52), "8": (1, 1, 0.5, 0.5, 6, 17.72), "9": (1, 1, 0.5, 0.25, 6, 19.00),
        "10": (1, 1, 0.75, 0.5, 6, 21.04), "11": (1, 1, 0.75, 0.5, 2, 17.44), "12": (1, 1, 0.75, 0.5, 4, 17.76),
        "13": (1, 1, 0.75, 0.5, 8, 17.44), "14": (0.25, 1.5, 0.75, 0.5, 6, 25.08),
    }  # fmt: skip
    plan = plan_cells(CONFIGS / "ablation_table2.toml")
    found = {}
    for cell in plan.cells[: len(plan.rows)]:
        job = cell.runs[0].job
        assert job.model.decoder_depth == job.image.decoder_depth
        loss = (job.loss.fmri, job.loss.image, job.loss.fmri_mask, job.loss.image_mask)
        found[cell.row.id] = (*loss, job.model.decoder_depth, cell.row.published)
    assert found == table
    assert read_grid(CONFIGS / "ablation_demo.toml").reference == "full"
    assert len(plan_cells(CONFIGS / "ablation_demo.toml").cells) == 15


@pytest.mark.multiprocess
def test_two_real_cells_from_the_command_line(tiny_job, tmp_path, cadiff, warm, monkeypatch):
    monkeypatch.setattr(start, "start_training", warm.train)
    tiny_job(tmp_path / "one.toml", "phase1")
    text = GRID.replace('"one.toml", "two.toml"', '"one.toml"').replace('"phase1:val/rebuild"', '"val/rebuilt"')
    text = text.replace("phase2", "phase1").replace("cross.residual=false", "loss.self_contrast=0").replace("2]", "]")
    head = '[common]\nphase1 = ["train.steps=2", "train.save_every=2", "train.val_every=2"]\n[[row]]'
    (tmp_path / "grid.toml").write_text(text.replace("[[row]]", head, 1))
    words = ("ablate", tmp_path / "grid.toml", "--out", tmp_path / "out", "--ranks", 1)
    code, out, _ = cadiff(*words, "--dry-run")
    assert code == 0 and "full/seed1 phase1: new | train.steps=2" in out and not (tmp_path / "out").exists()
    code, out, err = cadiff(*words)
    assert code == 2 and "no run of phase1 reported 'val/rebuilt'. Did you mean 'val/rebuild'?" in err
    assert "no residual" in out and "not reported" in out
    (tmp_path / "grid.toml").write_text((tmp_path / "grid.toml").read_text().replace("val/rebuilt", "val/rebuild"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("card.json")}
    code, out, _ = cadiff(*words, "--json")
    assert code == 0 and len(before) == 2
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("card.json")}
    told = json.loads(out)
    assert told == json.loads((tmp_path / "out" / "ablation.json").read_text())
    values = [row["figures"]["val/loss"]["value"] for row in told["rows"]]
    assert values[1] < values[0]  # one term less
    assert told["rows"][1]["settings"] == {"loss.self_contrast": 0.0}
