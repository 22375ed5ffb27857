"""The sections about training: a table of the phases, loss curves, and what each phase predicts."""

from __future__ import annotations

import numpy as np

from cadiff.report.content import ReportContent, RunRecord
from cadiff.report.html import Html, figure, join, table, tag
from cadiff.report.pictures import as_uint8, picture
from cadiff.report.plots import Series, curves, legend, masked_signal

DRAWN_RECORDS = 2
DRAWN_VOXELS = 240  # more than this are too fine to see
PHASE_TITLES = {
    "phase1": "Phase 1: masked fMRI autoencoder",
    "phase2": "Phase 2: cross-modal tuning",
    "first_stage": "First stage: image autoencoder",
    "prior": "Prior: latent diffusion on pictures",
    "phase3": "Phase 3: diffusion from fMRI",
}


def training(content: ReportContent) -> Html:
    """The table and the curves."""
    head = ["Run", "Steps", "Time", "Samples/s", "Parameters", "Loss, first to last", "Validation", "Setting"]
    problems = [
        tag("p", tag("strong", f"{run.name}: "), " ".join(run.problems), class_="note")
        for run in content.runs
        if run.problems
    ]
    phases = list(dict.fromkeys(run.phase for run in content.runs))
    panels = [_curves(phase, [run for run in content.runs if run.phase == phase]) for phase in phases]
    return join(
        [
            tag("h2", "Training"),
            table("Training runs", head, [_row(run) for run in content.runs], class_="numbers"),
            *problems,
            tag("div", *panels, class_="panels"),
        ]
    )


def _row(run: RunRecord) -> list:
    told, trained = run.summary, [line for line in run.history if "train/loss" in line]
    validated = [line["val/loss"] for line in run.history if "val/loss" in line]
    first = told.get("loss_first", trained[0]["train/loss"] if trained else None)
    last = told.get("loss_last", trained[-1]["train/loss"] if trained else None)
    steps = told.get("steps", run.history[-1]["step"] if run.history else 0)
    setting = [f"{told['world']} ranks, ZeRO-{told['zero']}, {told['precision']}"] if "world" in told else []
    return [
        join([run.name, tag("span", PHASE_TITLES.get(run.phase, run.phase), class_="small")]),
        f"{steps:,}" if told else f"{steps:,} so far",
        duration(told.get("seconds", trained[-1].get("time_s") if trained else None)),
        _number(told.get("samples_per_s"), "{:,.0f}"),
        join([_number(told.get("parameters"), "{:,}"), _trained(told)]),
        "not recorded" if first is None else f"{first:.4g} → {last:.4g}",
        _number(told.get("val_loss", validated[-1] if validated else None), "{:.4g}"),
        "".join(setting) or "not recorded",
    ]


def _trained(told: dict) -> Html | str:
    return tag("span", f"{told['trainable']:,} trained", class_="range") if "trainable" in told else ""


def _number(value: float | None, form: str) -> str:
    return "not recorded" if value is None else form.format(value)


def duration(seconds: float | None) -> str:
    """``42 s``, ``3 min 20 s``, ``5 h 12 min``."""
    if seconds is None:
        return "not recorded"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _curves(phase: str, runs: list[RunRecord]) -> Html:
    """Loss over steps of all runs of one phase; one run has its two lines named plainly."""
    series = []
    for at, run in enumerate(runs):
        prefix = "" if len(runs) == 1 else f"{run.name}, "
        for key, dashed in (("train/loss", False), ("val/loss", True)):
            points = [(line["step"], line[key]) for line in run.history if key in line]
            if points:
                series.append(Series(f"{prefix}{'validation' if dashed else 'training'}", points, at + dashed, dashed))
                if len(runs) > 1:
                    series[-1] = Series(series[-1].name, points, at, dashed)
    title = PHASE_TITLES.get(phase, phase)
    drawing = curves(series, x_title="optimizer step", y_title="loss", description=f"Loss curve. {title}")
    terms = _last_terms(runs[0]) if len(runs) == 1 else ""
    return figure(join([tag("h3", title), drawing]), join([legend(series), terms]))


def _last_terms(run: RunRecord) -> str:
    """The named terms of the last report, when there is more than one."""
    reported = [line for line in run.history if "train/loss" in line]
    if not reported:
        return ""
    found = {key.removeprefix("train/"): value for key, value in reported[-1].items() if key.startswith("train/")}
    found.pop("loss")
    return "Last terms: " + ", ".join(f"{key} {value:.3g}" for key, value in found.items()) if len(found) > 1 else ""


def previews(content: ReportContent) -> Html | None:
    """What the runs predict on fixed validation records: signals and pictures; None if nothing can be drawn."""
    blocks = [block for run in content.runs if (block := _preview(run)) is not None]
    if not blocks:
        return None
    about = "Fixed validation records with fixed masks and noise. Shaded stretches were hidden from the encoder."
    return join([tag("h2", "What the models predict"), tag("p", about), *blocks])


def _preview(run: RunRecord) -> Html | None:
    drawings = [*_signals(run), *_strips(run)]
    if not drawings:
        return None
    title = f"{PHASE_TITLES.get(run.phase, run.phase)} ({run.name})"
    return tag("div", tag("h3", title), tag("div", *drawings, class_="panels wide"))


def _signals(run: RunRecord) -> list[Html]:
    arrays = [run.preview.get(key) for key in ("signal", "visible", "prediction")]
    if any(array is None or array.ndim != 2 for array in arrays) or len({array.shape for array in arrays}) != 1:
        return []
    drawn = []
    for record in range(min(DRAWN_RECORDS, len(arrays[0]))):
        signal_V, visible_V, prediction_V = (array[record].astype(np.float64) for array in arrays)
        hidden_V = ~np.isfinite(visible_V)
        agreement = _correlation(signal_V[hidden_V], prediction_V[hidden_V])
        shown = slice(0, DRAWN_VOXELS)
        said = f"Record {record + 1}: signal in grey, prediction of the hidden voxels in colour"
        drawing = masked_signal(signal_V[shown], visible_V[shown], prediction_V[shown], said)
        cut = f" First {DRAWN_VOXELS} of {len(signal_V)} voxels." if len(signal_V) > DRAWN_VOXELS else ""
        drawn.append(
            figure(drawing, f"{said} (z-score over voxel). Correlation over all hidden voxels {agreement}.{cut}")
        )
    return drawn


def _correlation(a: np.ndarray, b: np.ndarray) -> str:
    if len(a) < 2 or a.std() < 1e-9 or b.std() < 1e-9:
        return "undefined (nothing hidden, or no contrast)"
    return f"{np.corrcoef(a, b)[0, 1]:.2f}"


def _strips(run: RunRecord) -> list[Html]:
    """One strip of pictures per array of pictures, in the order stored."""
    strips = []
    for key, array in run.preview.items():
        if array.ndim == 4 and array.shape[1] == 3:
            words = key.replace("_", " ")
            images = [picture(image, f"{words}, record {at + 1}") for at, image in enumerate(as_uint8(array[:4]))]
            strips.append(figure(tag("div", *images, class_="strip"), f"{words[0].upper()}{words[1:]}"))
    return strips
