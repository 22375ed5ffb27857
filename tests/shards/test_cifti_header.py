"""Headers of dense time series: parsed as nibabel does, in any byte order; what contradicts itself is refused."""

import struct

import numpy as np
import pytest

from cadiff.errors import DataError
from cadiff.shards import mmp
from cadiff.shards.cifti import read_columns, read_header


def test_garbage_of_many_kinds_is_a_data_error(four, tmp_path):
    good = four(tmp_path).read_bytes()
    rng = np.random.default_rng(0)
    bad = tmp_path / "bad.dtseries.nii"
    contents = [b"", b"not a scan", good[:300], good[:600], good[:5000], rng.bytes(4000)]
    for _ in range(25):
        damaged = bytearray(good[:9000] + good[-20:])
        for place in rng.integers(0, 9000, 40):
            damaged[place] = rng.integers(256)
        contents.append(bytes(damaged))
    for content in contents:
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.dtseries\.nii"):
            read_header(bad)
    with pytest.raises(DataError, match="no such file"):
        read_header(tmp_path / "absent.dtseries.nii")


def test_the_parsed_header_says_what_nibabel_says(write_dtseries, realdata, tmp_path):
    import nibabel as nib

    ours = write_dtseries(tmp_path / "n.dtseries.nii", np.zeros((4, 59412)), 1.0)
    real = [realdata / "cifti" / name for name in ("sub-MSC01_5frames_65890gray", "geometry91282_random_values")]
    for path in (ours, *(path.with_suffix(".dtseries.nii") for path in real)):
        header, image = read_header(path), nib.load(path)
        series, brain = (image.header.get_axis(number) for number in (0, 1))
        assert (header.frames, header.grayordinates) == image.shape and header.tr_s == pytest.approx(series.step)
        assert (header.offset, header.dtype) == (image.dataobj.offset, image.get_data_dtype())
        sizes = [len(range(*part.indices(len(brain)))) for _, part, _ in brain.iter_structures()]
        assert list(header.layout.sizes) == sizes
        table = mmp.parcellation()
        np.testing.assert_array_equal(brain.vertex[header.layout.place_C], table.vertex_C)
        assert (brain.name[header.layout.place_C[: table.left]] == "CIFTI_STRUCTURE_CORTEX_LEFT").all()


def rewrite(path, order, code, values, scaling=(0.0, 0.0)):
    """Another byte order or type of a dense time series: its header's fields changed, ``values`` (T, G) written."""
    data = path.read_bytes()
    fields, place = list(struct.unpack_from("<i8shh8q88xqdd", data)), 544
    fields[2:4], fields[-2:] = (code, values.dtype.itemsize * 8), scaling
    size, kind = struct.unpack_from("<ii", data, place)
    head = bytearray(data[: fields[-3]])
    struct.pack_into(f"{order}i8shh8q88xqdd", head, 0, *fields)
    struct.pack_into(f"{order}ii", head, place, size, kind)
    path.write_bytes(bytes(head) + np.ascontiguousarray(values.T).astype(values.dtype.newbyteorder(order)).tobytes())
    return path


@pytest.mark.parametrize(
    ("order", "code", "dtype"), [(">", 16, "f4"), ("<", 64, "f8"), ("<", 4, "i2"), (">", 512, "u2"), ("<", 2, "u1")]
)
def test_any_byte_order_and_number_type_is_read(four, tmp_path, order, code, dtype):
    values = np.random.default_rng(0).integers(0, 200, (4, 59412)).astype(dtype)
    path = rewrite(four(tmp_path), order, code, values, (0.5, 3.0))
    header, columns = read_header(path), np.array([59411, 7, 8, 0])
    np.testing.assert_array_equal(read_columns(header, columns), values[:, columns] * np.float32(0.5) + 3)


def test_a_type_that_is_no_real_number_is_refused(four, tmp_path):
    path = rewrite(four(tmp_path), "<", 32, np.zeros((4, 59412), np.complex64))
    with pytest.raises(DataError, match="values of NIfTI type 32"):
        read_header(path)
    path = rewrite(path, "<", 16, np.zeros((4, 59412), np.float32), (1.0, np.nan))
    with pytest.raises(DataError, match="an intercept of nan"):
        read_header(path)


def edited(path, old, new):
    """The file with a piece of its XML changed; both pieces have one length, so that all offsets stay."""
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b'NumberOfSeriesPoints="4"', b'NumberOfSeriesPoints="5"', "the matrix is"),
        (b'NumberOfSeriesPoints="4"', b'NumberOfSeriesPoints="0"', "0 frames"),
        (b'IndexOffset="29696"', b'IndexOffset="29695"', "overlap or leave columns out"),
        (b"<VertexIndices>0 1 2", b"<VertexIndices>0 1 x", "invalid literal"),
        (b"<VertexIndices>0 1 2", b"<VertexIndices>0  12", "vertices listed"),
        (b'SeriesUnit="SECOND"', b'SeriesUnit="SECOND>', "not well-formed"),
        (b'SeriesStep="0.72"', b'SeriesStep="1e99"', None),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(four, tmp_path, old, new, problem):
    path = edited(four(tmp_path), old, new)
    if problem is None:
        assert read_header(path).tr_s == 1e99  # strange, but nothing here depends on it
        return
    with pytest.raises(DataError, match=rf"d\.dtseries\.nii: its CIFTI header is damaged.*{problem}"):
        read_header(path)


def test_a_series_in_other_units_than_seconds_has_no_tr(four, tmp_path):
    assert read_header(edited(four(tmp_path), b'SeriesUnit="SECOND"', b'SeriesUnit="METER" ')).tr_s == 0


def test_scalar_files_are_refused_by_their_axes(write_dtseries, tmp_path):
    import nibabel as nib
    from nibabel.cifti2 import ScalarAxis

    axes = (ScalarAxis(["thickness"]), write_dtseries.left)
    path = tmp_path / "s.dscalar.nii"
    nib.save(nib.Cifti2Image(np.zeros((1, len(write_dtseries.left)), np.float32), header=axes), path)
    with pytest.raises(DataError, match="ScalarAxis x BrainModelAxis, expected SeriesAxis x BrainModelAxis"):
        read_header(path)
