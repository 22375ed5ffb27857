"""How well hidden voxels are filled in: by a phase-1 network, by principal components, by the training mean.

The studies beside this file share it. Every method sees the same visible voxels of the same rows, and is scored
alike: the correlation of the hidden voxels with their guess, sample by sample.

Legend: N training rows, n rows to fill, V voxels, K components.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cadiff.config import load_job
from cadiff.exports import load_part
from cadiff.phases import Space, build_phase

COUNTS = (4, 16, 64, 256)  # components that are tried


@dataclass(frozen=True)
class Hidden:
    """Rows to fill: signals float32 (n, V), and what is hidden of them, bool (n, V)."""

    signal: np.ndarray
    hidden: np.ndarray

    def of(self, chosen_n: np.ndarray) -> Hidden:
        """Some of the rows."""
        return Hidden(self.signal[chosen_n], self.hidden[chosen_n])

    def score(self, guess_nV: np.ndarray) -> np.ndarray:
        """Correlation over the hidden voxels of each row, float64 (n,); 0 for a guess without variance."""
        out = np.zeros(len(self.signal))
        for i, (guess_V, signal_V, hidden_V) in enumerate(zip(guess_nV, self.signal, self.hidden)):
            pair = guess_V[hidden_V], signal_V[hidden_V]
            if min(part.std() for part in pair) > 1e-9:
                out[i] = np.corrcoef(*pair)[0, 1]
        return out


@torch.no_grad()
def network_fill(run: Path, signal_nV: np.ndarray, ids: np.ndarray) -> tuple[Hidden, np.ndarray]:
    """Hide what the run's first view hides of each row at validation, and fill it in by its network."""
    job = load_job(run / "job.toml", phase="phase1")
    phase = build_phase(job, Space(signal_nV.shape[1], 0)).eval()
    phase.fmri.load_state_dict(load_part(run, "fmri"))
    hidden, guesses = [], []
    for start in range(0, len(ids), 128):
        part = slice(start, start + 128)
        signal_BV = torch.from_numpy(signal_nV[part])
        numbers = torch.from_numpy(ids[part])
        masking = phase.mask({"signal": signal_BV, "epoch": torch.full_like(numbers, -1), "sample_id": numbers}, 1)
        guesses.append(phase.fmri(signal_BV, masking).flatten(1).numpy())
        hidden.append(masking.hidden_BL.repeat_interleave(job.model.patch, 1).bool().numpy())
    return Hidden(signal_nV, np.concatenate(hidden)), np.concatenate(guesses)


@dataclass(frozen=True)
class Filler:
    """Principal components of training rows, with the variance along each and the mean variance left over."""

    mean_V: np.ndarray
    basis_VK: np.ndarray
    variance_K: np.ndarray
    noise: float

    @classmethod
    def of(cls, signal_NV: np.ndarray, count: int) -> Filler:
        """The leading ``count`` components, at most N - 2."""
        mean_V = signal_NV.mean(0)
        gram_NN = (signal_NV - mean_V) @ (signal_NV - mean_V).T / len(signal_NV)
        values, vectors = (part[..., ::-1] for part in np.linalg.eigh(gram_NN.astype(np.float64)))
        kept, left = values[: min(count, len(values) - 2)], values[min(count, len(values) - 2) :].clip(0)
        scale = np.sqrt(kept * len(signal_NV))
        basis_VK = ((signal_NV - mean_V).T @ (vectors[:, : len(kept)] / scale)).astype(np.float32)
        return cls(mean_V, basis_VK, kept, float(left.sum() / (signal_NV.shape[1] - len(kept))))

    def fill(self, rows: Hidden, shrink: float) -> np.ndarray:
        """Fit the components to each row's visible voxels, and read the others from them: (n, V).

        Args:
            shrink: 0 for plain least squares; 1 for the guess of least expected error if voxels are these components
                plus independent noise of one variance (probabilistic PCA; Tipping & Bishop, J R Stat Soc B 1999).
        """
        prior_K = shrink * self.noise / np.maximum(self.variance_K - self.noise, 1e-6)
        out_nV = np.empty_like(rows.signal)
        for i, (signal_V, hidden_V) in enumerate(zip(rows.signal, rows.hidden)):
            seen_SK = self.basis_VK[~hidden_V]
            left_KK = seen_SK.T @ seen_SK + np.diag(prior_K + 1e-6).astype(np.float32)
            weight_K = np.linalg.solve(left_KK, seen_SK.T @ (signal_V - self.mean_V)[~hidden_V])
            out_nV[i] = self.mean_V + self.basis_VK @ weight_K
        return out_nV


def component_scores(train_NV: np.ndarray, choose: Hidden, rows: Hidden) -> dict[str, np.ndarray]:
    """Scores of ``rows`` by the training mean and by components, their number being the best on ``choose``.

    Returns:
        "mean", "pca" (plain least squares) and "pca, shrunk": float64 (n,) each.
    """
    fillers = [Filler.of(train_NV, count) for count in COUNTS]
    found = {"mean": rows.score(np.broadcast_to(train_NV.mean(0), rows.signal.shape))}
    for name, shrink in (("pca", 0.0), ("pca, shrunk", 1.0)):
        best = max(fillers, key=lambda filler: choose.score(filler.fill(choose, shrink)).mean())
        found[name] = rows.score(best.fill(rows, shrink))
    return found
