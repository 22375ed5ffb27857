"""What the tests of HCP's packing share: the name of a cleaned run, the columns of V1, and frames read by nibabel."""

import numpy as np

from cadiff.shards.mmp import roi_columns

CLEAN = "_Atlas_MSMAll_hp2000_clean"
V1 = roi_columns("V1")


def frames_of(run, columns_V):
    import nibabel as nib

    return np.asarray(nib.load(run.path).dataobj, np.float64)[:, columns_V]
