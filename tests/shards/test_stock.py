"""What we pack is read by the stock packages: webdataset, zarr and numpy, without any code of ours."""

import io
import json
import tarfile

import numpy as np

from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.stock import read_blocks, read_frames, write_frames
from cadiff.shards.zarr_store import ScanWriter

FRAMES = np.random.default_rng(0).normal(size=(300, 21)).astype(np.float32)


def pack(folder, dtype="float16"):
    def fill(pack):
        scans = ScanWriter(pack.folder / "scans.zarr")
        scans.add("sub-01", "rest", FRAMES, {"tr_s": 0.72})
        pack.scans = scans.describe()
        pack.add(make_records("sub-01", "rest", FRAMES[:150], "train", frames=1, start=list(range(150))))

    pack_folder(folder, "hcp", {}, {}, fill, silent, dtype=dtype)
    return folder


def test_numpy_reads_the_members_of_our_tars(tmp_path):
    with tarfile.open(pack(tmp_path / "set") / "fmri-000000.tar") as tar:
        arrays = [np.load(io.BytesIO(tar.extractfile(m).read())) for m in tar if m.name.endswith(".npy")]
    np.testing.assert_array_equal(np.concatenate(arrays), FRAMES[:150].astype(np.float16))


def test_webdataset_reads_our_tars_and_the_scale_says_what_whole_numbers_mean(tmp_path):
    import webdataset

    url = str(pack(tmp_path / "set", "int16") / "fmri-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode())
    rows = np.concatenate([sample["npy"] * np.float32(sample["json"]["scale"]) for sample in samples])
    np.testing.assert_allclose(rows, FRAMES[:150], atol=2e-4)
    assert samples[1]["json"]["start"][:2] == [64, 65] and samples[0]["json"]["subject"] == "sub-01"


def test_zarr_reads_our_scans(tmp_path):
    import zarr

    group = zarr.open_group(str(pack(tmp_path / "set") / "scans.zarr"), mode="r")
    array = group["sub-01/rest"]
    np.testing.assert_array_equal(array[:], FRAMES.astype(np.float16))
    np.testing.assert_array_equal(array[100:260, 3], FRAMES[100:260, 3].astype(np.float16))
    assert array.attrs["tr_s"] == 0.72 and array.metadata.zarr_format == 3


def test_the_usual_way_can_be_measured_beside_ours(tmp_path):
    assert next(read_blocks([pack(tmp_path / "set") / "fmri-000000.tar"])) == 64
    write_frames(tmp_path / "frames-000000.tar", FRAMES)
    assert next(read_frames(tmp_path / "frames-000000.tar", 50)) == 50
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["scans"]["arrays"] >= 1
