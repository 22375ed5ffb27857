"""Take both branches of a finished phase 2 over, to go on from there or to adapt it to a new subject."""

from __future__ import annotations

from torch import nn

from cadiff.errors import ConfigError
from cadiff.exports import load_into, load_part

FIXED = {"pos_embed", "decoder_pos_embed"}  # of the fMRI branch: computed, for a signal of any length


def load_tuned(fmri: nn.Module, image: nn.Module, folder: str) -> dict[str, dict[str, list[str]]]:
    """Load the parts "fmri" and "image" by name; every tensor must fit but fixed tables for another signal length.

    Returns:
        The reports of ``load_into``, by part.

    Raises:
        ConfigError: the export's sizes differ from this job's. DataError: it is missing, damaged or of another phase.
    """
    reports = {}
    for name, part in (("fmri", fmri), ("image", image)):
        report = load_into(part, load_part(folder, name), what=f"init.tuned {folder}: {name}")
        misfits = report["missing"] + report["unused"] + [key for key in report["resized"] if key not in FIXED]
        if misfits:
            raise ConfigError(
                f"init.tuned {folder}: {misfits[0]} and {len(misfits) - 1} more tensors of part '{name}' differ in "
                "shape or exist on one side. Set [model], [image] and [cross] as that job has them."
            )
        reports[name] = report
    return reports
