"""One function reads every launcher's idea of who this process is."""

import pytest

from cadiff.distributed import Place, place, under_launcher
from cadiff.errors import ConfigError


@pytest.mark.parametrize(
    "environ",
    [
        {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"},
        {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"},
        {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"},
    ],
    ids=["deepspeed or torchrun", "srun", "mpirun"],
)
def test_each_dialect_gives_the_same_place(environ):
    assert place(environ) == Place(rank=3, local_rank=1, world=4)
    assert not place(environ).is_main


def test_no_launcher_is_one_process():
    assert place({}) == Place()
    assert place({}).is_main
    assert not under_launcher({})
    assert under_launcher({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})


@pytest.mark.parametrize("rank", ["x", "4", "-1"])
def test_nonsense_is_refused(rank):
    with pytest.raises(ConfigError, match=r"[Tt]he launcher"):
        place({"RANK": rank, "LOCAL_RANK": "0", "WORLD_SIZE": "4"})
