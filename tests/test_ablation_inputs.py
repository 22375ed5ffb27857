"""What an ablation's cells are made from: all of it is looked at before the first one, and told apart afterwards."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from ablation_world import GRID, Trainer, grid_writer, run

from cadiff import exports, metrics
from cadiff.errors import ConfigError, DataError
from cadiff.exports import save_export
from cadiff.files import read_json, sha256, write_json
from cadiff.launch.ablation import Ablation
from cadiff.launch.ablation_cells import check_cells, plan_cells
from cadiff.launch.ablation_decode import Decoder
from cadiff.launch.ablation_state import state_of
from cadiff.launch.ablation_table import make_table, unreported
from cadiff.launch.view import View

ROAD = (
    GRID.replace('"two.toml"]', '"two.toml", "three.toml"]')
    .replace('["val/loss", "phase1:val/rebuild"]', '["eval/ssim_rgb", "eval/class-accuracy"]')
    .replace('"lower"', '"higher"')
    .replace("[1, 2]", "[1]")
    .replace("[[row]]", "[sample]\nlimit = 6\n[eval]\n[[row]]", 1)
)


@pytest.fixture
def grid(tmp_path, tiny_job):
    return grid_writer(tmp_path, tiny_job)


@pytest.fixture
def road(grid, tmp_path, monkeypatch):
    """Write a grid that ends in pictures. They cost nothing, and their scores tell how they were made.

    ``road.broken`` are the names of cells whose scoring fails.
    """
    save_export(tmp_path / "prior", {}, {"phase": "prior"})
    two = (tmp_path / "two.toml").read_text()
    (tmp_path / "three.toml").write_text(two.replace("phase2", "phase3") + f'[init]\nprior = "{tmp_path / "prior"}"\n')

    def sample(decoder, cell, folder):
        write_json(folder / "samples.json", {})
        (folder / "samples.npz").touch()

    def score(decoder, cell, folder):
        if cell.name in write.broken:
            raise DataError("no judge today")
        rows_N = [decoder.evaluation.seed / 10] * decoder.sampling.limit
        scored = {"ssim_rgb": {"value": rows_N[0], "chance": 0.05}}
        told = {"main": "cadiff", "methods": {"cadiff": scored}, "notes": []}
        told["rows"] = {"stimulus": list(range(len(rows_N))), "scores": {"cadiff": {"ssim_rgb": rows_N}}}
        write_json(folder / "metrics.json", told)

    def write(*changes):
        return plan_cells(grid(ROAD, *changes), tmp_path / "out")

    write.broken = set()
    monkeypatch.setattr(Decoder, "_sample", sample)
    monkeypatch.setattr(Decoder, "_score", score)
    return write


def tables_of(plan, trainer):
    """The tables that are made after the cells of one call."""
    tables = []
    after_cell = lambda failed: tables.append(make_table(plan, failed))  # noqa: E731
    Ablation(plan, 1, View(), train=trainer, after_cell=after_cell).run()
    return tables


def test_a_score_that_these_stimuli_do_not_allow_stops_no_cell(road):
    plan = road()
    tables = tables_of(plan, Trainer())
    assert [[row["finished"] for row in table["rows"]] for table in tables] == [[[1], []], [[1], [1]]]
    figures = tables[-1]["rows"][1]["figures"]
    assert figures["eval/ssim_rgb"]["value"] == pytest.approx(0.1) and figures["eval/class-accuracy"]["value"] is None
    assert tables[-1]["chance"] == {"eval/ssim_rgb": 0.05}
    assert "no cell's scores hold 'class-accuracy'. They hold ssim_rgb" in unreported(plan, tables[-1])[0]


@pytest.mark.parametrize("change", [("limit = 6", "limit = 4"), ("[eval]", "[eval]\nseed = 2"), "protocol"])
@pytest.mark.parametrize("broken", [set(), {"full/seed1"}])
def test_a_table_never_holds_scores_of_two_kinds(road, monkeypatch, change, broken):
    tables_of(road(), Trainer())
    if change == "protocol":
        monkeypatch.setitem(metrics.METRICS, "ssim_rgb", replace(metrics.METRICS["ssim_rgb"], protocol="ssim/2"))
    plan, again = road(*([change] if change != "protocol" else [])), Trainer()
    road.broken |= broken
    first, last = tables_of(plan, again)
    assert again.started == []  # training is what it was
    # The first cell has new scores, or none; the old ones of the second are gone and not beside them.
    assert [row["finished"] for row in first["rows"]] == [[] if broken else [1], []]
    assert [row["finished"] for row in last["rows"]] == [[] if broken else [1], [1]]
    assert last["rows"][0]["failed"] == ({"1": "no judge today"} if broken else {})
    road.broken.clear()
    assert len(tables_of(plan, again)) == len(broken) and tables_of(plan, again) == []


def test_scores_of_a_phase_3_that_is_gone_are_not_taken_for_those_of_the_next(road):
    plan = road()
    tables_of(plan, Trainer())
    (plan.cells[0].runs[-1].folder / "export" / "card.json").unlink()
    Decoder(plan, View()).forget_stale()
    assert [(cell.folder / "scores").exists() for cell in plan.cells] == [False, True]


@pytest.mark.parametrize(("figure", "better"), [("mse", "lower"), ("ssim_rgb", "higher")])
def test_a_score_whose_direction_is_known_is_not_read_upside_down(road, figure, better):
    figures = ('"eval/ssim_rgb", "eval/class-accuracy"', f'"eval/{figure}"')
    (other,) = {"lower", "higher"} - {better}
    assert road(figures, ('"higher"', f'"{better}"')).grid.better == better
    told = f"{figure}' {better} is better, but better = '{other}'.*Set better = '{better}'"
    with pytest.raises(ConfigError, match=told):
        road(figures, ('"higher"', f'"{other}"'))


@pytest.fixture
def vit(tmp_path):
    """A folder that looks like a ViT's."""
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text("{}")
    (tmp_path / "vit" / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "vit"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_image_network_stops_it_before_anything_runs(grid, vit, tmp_path, name):
    plan = plan_cells(grid(GRID, ("cross.residual=false", f"init.image='{vit}'")), tmp_path / "out")
    assert check_cells(plan, asked_ranks=1) == 1
    (vit / name).unlink()
    with pytest.raises(DataError, match=f"vit/{name}: no such file. init.image takes .* or train without one"):
        check_cells(plan, asked_ranks=1)


def test_foreign_weights_are_hashed_once_and_again_when_they_change(grid, vit, tmp_path, monkeypatch):
    common = f"[common]\nphase2 = [\"init.image='{vit}'\"]\n[[row]]"
    plan, hashed = plan_cells(grid(GRID, ("[[row]]", common)), tmp_path / "out"), []
    run(plan, Trainer())
    monkeypatch.setattr(exports, "sha256", lambda path: hashed.append(path) or sha256(path))
    make_table(plan, {})
    (vit / "model.safetensors").write_bytes(b"other weights")
    assert hashed == []  # the run has seen them
    assert [state_of(cell.runs[1]) for cell in plan.cells] == ["other"] * 4
    assert hashed == [vit / "model.safetensors"]


class Kept:
    """Stands in for an opened folder of features."""

    def __init__(self, folder, rounding=None):
        self.folder, self.rounding = folder, rounding
        self.manifest = SimpleNamespace(image_size=16, masks=2, mask_ratio=0.5, seed=1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("[1, 2]", "[1]"), ""),
        (("[1, 2]", "[1, 2]"), "packed for seed = 1, this job has 2"),
        (("cross.residual=false", "image.train_encoder=true"), "image.train_encoder = true changes it"),
        (("cross.residual=false", "loss.image_masks=3"), "packed for loss.image_masks = 2, this job has 3"),
        (("cross.residual=false", "data.image_size=32"), "packed for data.image_size = 16, this job has 32"),
    ],
)
def test_kept_features_must_fit_every_cell(grid, tmp_path, monkeypatch, change, named):
    monkeypatch.setattr("cadiff.feature_cache.Features", Kept)
    common = '[common]\nphase2 = ["data.features=\'kept\'", "loss.image_masks=2"]\n[[row]]'
    seeds = [] if change[0] == "[1, 2]" else [("[1, 2]", "[1]")]
    plan = plan_cells(grid(GRID, ("[[row]]", common), change, *seeds), tmp_path / "out")
    if not named:
        assert check_cells(plan, asked_ranks=1) == 1
        return
    with pytest.raises(ConfigError, match=named):
        check_cells(plan, asked_ranks=1)


@pytest.mark.parametrize(
    ("found", "plain", "kept", "rounded"),
    [
        ({"features": None, "precision": "fp32"}, "finished", "finished", "other"),
        ({"features": "float16", "precision": "fp32"}, "other", "other", "finished"),
        ({"features": None, "precision": "bf16"}, "finished", "other", "other"),
        ({"features": "float32 in bf16", "precision": "bf16"}, "other", "finished", "other"),
    ],
)
def test_other_features_make_another_run(grid, tmp_path, monkeypatch, found, plain, kept, rounded):
    run(plan_cells(grid(), tmp_path / "out"), Trainer())
    roundings = {str(tmp_path / "float32"): None, str(tmp_path / "float16"): "float16"}
    monkeypatch.setattr("cadiff.shards.features.Features", lambda folder: Kept(folder, roundings[folder]))
    states = []
    for folder in ("", *roundings):
        common = f"[common]\nphase2 = [\"data.features='{folder}'\"]\n[[row]]"
        last = plan_cells(grid(GRID, ("[[row]]", common)), tmp_path / "out").cells[0].runs[1]
        identity = last.folder / "identity.json"
        write_json(identity, {**read_json(identity), **found})
        states.append(state_of(last))
    assert states == [plain, kept, rounded]
