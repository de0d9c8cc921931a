"""The evaluation as a folder to look at: tables, plots, every object in 3D, and a study for human raters."""

from jointdreamer.evaluation.report.study import aggregate_study, study_table
from jointdreamer.evaluation.report.write import write_report

__all__ = ["aggregate_study", "study_table", "write_report"]
