"""CADiff: decode pictures from brain activity with masked autoencoding, cross-attention and latent diffusion.

The folders ``kernels``, ``shards``, ``launch`` and ``configs`` stand beside this package in a checkout and
are imported as ``cadiff.kernels`` and so on. An installed wheel has them inside the package; in a checkout the
lines below add the root to the search path, so that no top-level name such as ``kernels`` is ever taken.
"""

from pathlib import Path

__version__ = "0.1.0"

_root = Path(__file__).resolve().parent.parent
if not (_root / "cadiff" / "kernels").exists() and (_root / "kernels").is_dir():
    __path__.append(str(_root))
