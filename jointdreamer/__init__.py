"""JointDreamer: text-to-3D by joint score distillation (ECCV 2024, arXiv 2407.12291)."""
