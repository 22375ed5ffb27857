"""The house rules that a machine can hold: floors, doors, first lines, file lengths, the shape of the packages."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("cadiff", "kernels", "shards", "launch")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

GROUND = {"errors", "config", "distributed", "files", "exports", "splits"}
MODELS = {
    "models",
    "attention",
    "attention_blocked",
    "attention_definition",
    "layers",
    "masking",
    "losses",
    "metrics",
    "lean",
    "statistics",
}

# library -> the files (or folders) that may import it
DOORS = {
    "triton": ("kernels/",),
    "xformers": ("cadiff/attention.py",),
    "diffusers": ("cadiff/models/latent_diffusion.py", "cadiff/models/first_stage.py"),
    "deepspeed": ("cadiff/engine.py", "cadiff/engine_json.py", "launch/"),
    "webdataset": ("shards/",),
    "zarr": ("shards/",),
    "nibabel": ("shards/",),
    "h5py": ("shards/",),
    "pyarrow": ("shards/",),
    "fsspec": ("shards/",),
    "simplejpeg": ("shards/", "launch/loader_bench.py"),
    "wandb": ("cadiff/tracking.py",),
    "tensorboard": ("cadiff/tracking.py",),
    "matplotlib": ("cadiff/report",),
    "typer": ("launch/",),
    "rich": ("launch/",),
}
# Over 250 lines, with the reason.
LONG: dict[str, str] = {}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _floor(path: str) -> int:
    parts = Path(path).with_suffix("").parts
    if parts[0] == "launch":
        return 5
    if parts[0] in ("kernels", "shards"):
        return 1
    room = parts[1] if len(parts) > 1 else ""
    if room in GROUND or room == "__init__":
        return 0
    if room in MODELS:
        return 2
    return 3 if room == "phases" else 4


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _path_of(module: str) -> str | None:
    """The file of an import such as cadiff.shards.stream.Stream, as a path in the checkout."""
    parts = module.split(".")[1:]
    if parts and parts[0] in FOLDERS:
        return "/".join(parts)
    return "cadiff/" + "/".join(parts) if parts else None


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_go_down(path):
    here = _floor(_name(path))
    for module in _imports(path):
        if not module.startswith("cadiff."):
            continue
        there = _path_of(module)
        assert _floor(there) <= here, f"{_name(path)} (floor {here}) imports {module} (floor {_floor(there)})"
        siblings = {_name(path).split("/")[0], there.split("/")[0]}
        assert siblings != {"kernels", "shards"}, f"{_name(path)} imports {module}: kernels and shards are strangers"
        if _name(path).startswith("cadiff/models"):
            assert not there.startswith("shards"), f"{_name(path)} imports {module}: models never read shards"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_each_library_has_one_door(path):
    for module in _imports(path):
        allowed = DOORS.get(module.split(".")[0])
        assert allowed is None or _name(path).startswith(allowed), f"{_name(path)} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_first_line_says_what_lives_there(path):
    assert path.read_text(encoding="utf-8").startswith('"""'), f"{_name(path)} does not open with a sentence"


def test_files_stay_readable():
    long = {_name(path): path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    assert {name: lines for name, lines in long.items() if lines > 260 and name not in LONG} == {}


def test_folders_beside_the_package_have_no_init():
    # A top-level package called `kernels` breaks diffusers, which probes for a distribution of that name.
    for folder in ("kernels", "shards", "launch", "configs"):
        assert not list((ROOT / folder).rglob("__init__.py"))


def test_checkout_is_importable_without_installing(tmp_path):
    import subprocess
    import sys

    code = "import cadiff.kernels.keyed, cadiff.shards.voxels, cadiff.launch.worker, diffusers; print('fine')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "fine", done.stderr
