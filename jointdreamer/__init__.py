"""JointDreamer: text-to-3D by joint score distillation (ECCV 2024, arXiv 2407.12291)."""

import os

# OpenMP's threads spin while they wait for each other: beside one other busy process that costs most of a core, and a
# run three times as long. OpenMP reads this when torch loads it, so it stands here, before every import of torch.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "passive"
