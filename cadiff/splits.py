"""The three splits as numbers, and the guard that keeps test rows out of everything that is fitted."""

from __future__ import annotations

import numpy as np

from cadiff.errors import ConfigError

TRAIN, VAL, TEST = 0, 1, 2


def refuse_test(split_N: np.ndarray, *, what: str) -> None:
    """Stop if any row about to be fitted belongs to the test split.

    Args:
        split_N: integer split code of each row, as in a packed dataset's table.
        what: the thing being fitted, for the message.

    Raises:
        ConfigError: at least one row is a test row, so every score afterwards would be worthless.
    """
    held_out = int((np.asarray(split_N) == TEST).sum())
    if held_out:
        raise ConfigError(
            f"{what}: {held_out} of {len(split_N)} rows are of the test split. Fit on train rows only; "
            "test rows are for evaluation."
        )
