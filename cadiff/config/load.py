"""Read a TOML file, lay overrides over it, validate, and say plainly what is wrong."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from cadiff.config.jobs import JOBS, Job
from cadiff.errors import ConfigError


def load_job(path: str | Path, overrides: list[str] | tuple[str, ...] = (), *, phase: str | None = None) -> Job:
    """Compose and validate one job.

    Args:
        path: a TOML file.
        overrides: ``section.key=value`` strings; the value is read as TOML, else taken as text.
        phase: the phase the caller expects; the file must agree.

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest valid one), wrong type, or another phase.
    """
    path = Path(path)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such config file from here. Shipped ones are named without a path, such as -c phase2_god."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as problem:
        raise ConfigError(f"{path}: not a readable TOML file: {problem}.") from None
    origin: dict[tuple[str, ...], str] = {}
    for text in overrides:
        keys, value = parse_override(text)
        _put(tree, keys, value, text)
        origin[keys] = f"override '{text}'"
    kind = tree.get("phase")
    if kind not in JOBS:
        raise ConfigError(f"{path}: phase = {kind!r}; it is one of {', '.join(JOBS)}.")
    if phase is not None and kind != phase:
        raise ConfigError(f"{path} configures {kind}, but {phase} was asked for. Name a {phase} config.")
    try:
        return JOBS[kind].model_validate(tree)
    except ValidationError as problem:
        lines = [_explain(error, JOBS[kind], origin, path) for error in problem.errors()]
        raise ConfigError("\n        ".join(lines)) from None


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Split ``optim.lr=1e-4`` into its keys and its value, read as TOML where it is TOML."""
    name, equals, raw = text.partition("=")
    keys = tuple(part.strip() for part in name.split("."))
    if not equals or not all(keys):
        raise ConfigError(f"'{text}' is not an override. Write section.key=value, for example optim.lr=1e-4.")
    try:
        return keys, tomllib.loads(f"value = {raw.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return keys, raw.strip()


def _put(tree: dict, keys: tuple[str, ...], value: Any, text: str) -> None:
    for depth, key in enumerate(keys[:-1]):
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override '{text}': {'.'.join(keys[: depth + 1])} is a value, not a section.")
    tree[keys[-1]] = value


def _explain(error: dict, model: type[BaseModel], origin: dict[tuple[str, ...], str], path: Path) -> str:
    where = tuple(str(part) for part in error["loc"])
    source = next((said for keys, said in origin.items() if where[: len(keys)] == keys), str(path))
    return f"{source}: {explain(error, model)}"


def explain(error: Any, model: type[BaseModel]) -> str:
    """One of pydantic's errors about a TOML file's tree as a sentence, with the nearest known key."""
    where = tuple(str(part) for part in error["loc"])
    key = ".".join(where) or "the file"
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, where[:-1])
        near = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'?" if near else f"Known here: {', '.join(sorted(known))}."
        return f"unknown key '{key}'. {hint}"
    if error["type"] == "missing":
        return f"key '{key}' is missing; it has no default."
    message = error["msg"].removeprefix("Value error, ")
    return f"{key} = {error['input']!r}: {message[0].lower()}{message[1:]}." if where else f"{message}."


def _known_keys(model: Any, where: tuple[str, ...]) -> list[str]:
    for part in where:
        if part.isdigit():  # an entry of a list, whose annotation was looked through already
            continue
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return []
        model = field.annotation if isinstance(field.annotation, type) else (get_args(field.annotation) or (None,))[0]
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def dump_toml(job: Job) -> str:
    """Write a job back as TOML, defaults included, so that a run folder holds all that was decided."""
    tree = job.model_dump()
    lines = [f"{key} = {_toml(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    for name, section in tree.items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return repr(value)
