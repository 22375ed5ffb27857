"""What a finished job leaves: a preview worth drawing, the export that the next phase reads, and a summary."""

from __future__ import annotations

from typing import Any

import numpy as np

from cadiff.attention import describe_attention
from cadiff.exports import save_export
from cadiff.files import whole_file, write_json
from cadiff.kernels.dispatch import describe as describe_kernels
from cadiff.previews import preview_of
from cadiff.session import Session
from cadiff.tracking import read_metrics


def finish(session: Session) -> dict[str, Any]:
    """Write the preview, the export that the next phase reads, and the summary; the summary comes last."""
    job, run, engine = session.job, session.run, session.engine
    with engine.averaged():
        states = engine.part_states()
        preview = preview_of(session)
    summary: dict[str, Any] = {}
    if session.place.is_main:
        with whole_file(run / "preview.npz") as beside, open(beside, "wb") as handle:
            np.savez(handle, **preview)
        save_export(run / "export", states, _card(session))
        reports = [line for line in read_metrics(run) if "train/loss" in line]
        validations = [line["val/loss"] for line in read_metrics(run) if "val/loss" in line]
        summary = {
            "phase": job.phase,
            "name": job.name,
            "steps": session.steps,
            "seconds": reports[-1]["time_s"],
            "samples_per_s": float(np.median([line["perf/samples_per_s"] for line in reports])),
            "loss_first": reports[0]["train/loss"],
            "loss_last": reports[-1]["train/loss"],
            "val_loss": validations[-1] if validations else None,
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


def _card(session: Session) -> dict[str, Any]:
    job = session.job
    return {
        "phase": job.phase,
        "job": job.model_dump(),
        "space": {"voxels": session.space.voxels, "classes": session.space.classes},
        "architecture": getattr(session.engine.phase, "architecture", {}),
        "steps": session.steps,
        "lineage": session.identity,
    }
