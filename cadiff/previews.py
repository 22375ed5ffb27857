"""What the model makes of a few validation samples while it trains: pictures in <run>/previews."""

from __future__ import annotations

import numpy as np
import torch

from cadiff.figures import asked_of
from cadiff.files import whole_file
from cadiff.report.preview import draw_preview
from cadiff.session import Session
from cadiff.tracking import Tracker

SAMPLES = 4


@torch.no_grad()
def preview_of(session: Session) -> dict[str, np.ndarray]:
    """The phase's preview of the first validation samples, masked as in every validation; all ranks call this."""
    stream, engine = session.val or session.stream, session.engine
    batch = engine.taken(stream.micro(0, 0))
    if "lengths" not in batch:  # a packed batch is cut by the phase
        batch = {key: value[:SAMPLES] for key, value in batch.items()}
    batch["epoch"] = torch.full_like(batch["epoch"], -1)
    engine.phase.eval()
    shown = asked_of(engine, engine.phase.preview, batch)
    return {key: value.float().cpu().numpy() for key, value in shown.items()}


def draw(session: Session, tracker: Tracker | None) -> None:
    """Draw the preview of an fMRI autoencoder beside those of earlier steps; all ranks call this."""
    preview = preview_of(session)
    session.engine.phase.train()
    if tracker is None or not {"signal", "visible", "prediction"} <= preview.keys():
        return
    path = session.run / "previews" / f"{session.step:06d}.png"
    with whole_file(path) as beside:
        beside.write_bytes(draw_preview(preview))
    tracker.log_picture(session.step, "preview", path)
