"""What a job leaves: its best weights so far; at its end a preview, the export for the next phase, and a summary."""

from __future__ import annotations

from typing import Any

import numpy as np

from cadiff.attention import describe_attention
from cadiff.beginning import ridge_of
from cadiff.errors import NonFiniteError
from cadiff.exports import save_export
from cadiff.files import whole_file, write_json
from cadiff.kernels.dispatch import describe as describe_kernels
from cadiff.previews import preview_of
from cadiff.session import Session
from cadiff.tracking import read_metrics

NAMED = 12  # tensors of each kind that a card names; the rest are counted


def keep_best(session: Session, values: dict[str, float]) -> None:
    """Keep the weights as they are if a validation is the best so far; all ranks call this."""
    best, engine = session.best, session.engine
    if not best.improves(values):
        return
    chosen = best.told(session.step, values)
    with engine.averaged():
        states, preview = engine.part_states(), preview_of(session)
    engine.phase.train()
    best.keep(chosen, states, _card(session, chosen), preview)
    engine.barrier()


def finish(session: Session) -> dict[str, Any]:
    """Write the preview, the export that the next phase reads, and the summary; the summary comes last.

    Raises:
        NonFiniteError: the best validation is to be exported, and none had a finite figure.
    """
    job, run, engine, best = session.job, session.run, session.engine, session.best
    if best.figure == "last":
        chosen: dict[str, Any] = {"figure": "last", "step": session.steps}
        with engine.averaged():
            states, preview = engine.part_states(), preview_of(session)
    elif best.found is None:
        raise NonFiniteError(
            f"{job.name}: train.select = '{best.figure}' was NaN or infinite in every validation, so there is no best "
            "step to export. Lower optim.lr, or set train.select=last to see what came of it."
        )
    else:
        chosen = best.found
        states, preview = (best.weights(), best.preview()) if session.place.is_main else ({}, {})
    summary: dict[str, Any] = {}
    if session.place.is_main:
        with whole_file(run / "preview.npz") as beside, open(beside, "wb") as handle:
            np.savez(handle, **preview)
        save_export(run / "export", states, _card(session, chosen))
        reports = [line for line in read_metrics(run) if "train/loss" in line]
        validations = {line["step"]: line["val/loss"] for line in read_metrics(run) if "val/loss" in line}
        summary = {
            "phase": job.phase,
            "name": job.name,
            "steps": session.steps,
            "seconds": reports[-1]["time_s"],
            "samples_per_s": float(np.median([line["perf/samples_per_s"] for line in reports])),
            "loss_first": reports[0]["train/loss"],
            "loss_last": reports[-1]["train/loss"],
            "selected": chosen,
            "val_loss": validations.get(chosen["step"]),  # of what is exported
            "parameters": engine.parameters,
            "trainable": engine.trained,
            "world": session.place.world,
            "zero": job.engine.zero,
            "precision": engine.precision,
            "device": engine.device.type,
            "kernels": describe_kernels(),
            "attention": describe_attention(engine.device),
        }
        write_json(run / "summary.json", summary)
    engine.barrier()
    return summary


def _card(session: Session, chosen: dict[str, Any]) -> dict[str, Any]:
    job, phase = session.job, session.engine.phase
    return {
        "phase": job.phase,
        "job": job.model_dump(),
        "space": {"voxels": session.space.voxels, "classes": session.space.classes},
        "architecture": getattr(phase, "architecture", {}),
        "steps": session.steps,
        "selected": chosen,
        "init": {source: describe_init(report) for source, report in phase.init_report.items()},
        **ridge_of(session.run),
        "lineage": session.identity,
    }


def describe_init(report: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """How the tensors of a parent fitted ("matched", "missing", "resized", "unused"): how many, and the first names."""
    return {kind: {"count": len(names), "names": names[:NAMED]} for kind, names in report.items()}
