"""What the report tests share: a strict reader of pages, a run folder, scores and pictures."""

import json
from html.parser import HTMLParser

import numpy as np

from cadiff import metrics as m
from cadiff.exports import save_export
from cadiff.files import write_json
from cadiff.report import Pictures

VOID = {"img", "meta", "br"}


class Page(HTMLParser):
    """Reads a page, insists that every tag closes, and keeps what the tests ask about."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.text, self.open, self.tags, self.words = text, [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open and self.open.pop() == name, f"</{name}> closes something else"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def all(self, name):
        return [attributes for found, attributes in self.tags if found == name]

    @property
    def said(self):
        return " ".join(" ".join(self.words).split())


def make_run(folder, name="p1", phase="phase1", *, parents=None, data=("d" * 64,), preview=True, lr=0.001):
    folder.mkdir(parents=True)
    (folder / "job.toml").write_text(f'name = "{name}"\nphase = "{phase}"\nseed = 1\n[optim]\nlr = {lr}\n')
    lines = []
    for step in range(1, 21):
        loss = 3.0 * 0.7**step
        lines.append({"step": step, "time_s": step * 2.0, "train/loss": loss, "train/a": loss / 2, "train/b": loss / 2})
        if step % 5 == 0:
            lines.append({"step": step, "val/loss": loss * 1.1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "phase": phase, "name": name, "steps": 20, "seconds": 200.0, "samples_per_s": 512.0, "loss_first": 2.1,
        "loss_last": 0.0024, "val_loss": 0.0026, "parameters": 1234567, "trainable": 1000000, "world": 2, "zero": 2,
        "precision": "bf16", "device": "cpu", "kernels": {"similarity": "reference"}, "attention": "torch",
    }  # fmt: skip
    write_json(folder / "summary.json", summary)
    lineage = {"job_hash": "j", "data": list(data), "world": 2, "zero": 2, "parents": parents or {}}
    save_export(folder / "export", {}, {"phase": phase, "job": {}, "steps": 20, "lineage": lineage})
    if preview:
        signal = np.sin(np.arange(300) / 9)[None].repeat(3, 0).astype(np.float32)
        visible = signal.copy()
        visible[:, 20:60] = np.nan
        image = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16)).astype(np.float32)
        np.savez(folder / "preview.npz", signal=signal, visible=visible, prediction=signal * 0.9, image=image)
    return folder


def made_metrics(count=24, names=("cadiff", "ridge", "shuffled")):
    keys, rng = ["two-way-features", "two-way-pixcorr", "class-accuracy", "ssim_rgb", "mse"], np.random.default_rng(0)
    entry = {"value": 0.7, "low": 0.6, "high": 0.8, "chance": 0.5, "protocol": "x/1", "n": count, "samples": 2}
    difference = {"value": 0.1, "low": 0.05, "high": 0.2, "n": count, "better": "higher"}
    rows = {name: {key: rng.random(count).tolist() for key in keys} for name in names}
    return {
        "main": names[0], "stimuli": count, "classes": 4, "ways": 4, "interval": "95% bootstrap",
        "definitions": {key: vars(m.METRICS[key]) for key in keys},
        "methods": {name: {key: dict(entry) for key in keys} for name in names},
        "differences": {f"{names[0]} - {name}": {key: dict(difference) for key in keys} for name in names[1:]},
        "rows": {"stimulus": list(range(count)), "label": [0] * count, "scores": rows},
        "classifier": {"note": "the demo's own classifier", "accuracy_on_stimuli": 0.95}, "notes": [],
    }  # fmt: skip


def made_pictures(count=24, size=16):
    rng = np.random.default_rng(1)
    methods = {"cadiff": 2, "ridge": 1, "shuffled": 2}
    return Pictures(
        rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8),
        {name: rng.integers(0, 256, (count, k, 3, size, size), dtype=np.uint8) for name, k in methods.items()},
        [f"class {row}" for row in range(count)],
    )
