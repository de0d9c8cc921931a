"""Which runs each table and figure is of, and the paper's numbers (arXiv 2407.12291) to stand beside ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jointdreamer.errors import UserError


@dataclass(frozen=True)
class Row:
    """One method of a table: an experiment of conf/experiment/, and what the paper has for it, by column."""

    label: str
    experiment: str | None  # None: a method that is not built, so that only the paper's numbers are shown
    paper: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()  # further settings of the experiment
    run_name: str | None = None  # the name of its runs, where that is not the experiment's
    toybox: str | None = None  # the experiment that is the same on the toybox
    toybox_words: tuple[str, ...] = ()  # further settings there
    models: str | None = None  # its own, where they are not the table's; on the toybox it is `toybox` then

    def on(self, models: str) -> str:
        """The experiment to run for these models; "" for a method that is not built."""
        if models != "toybox":
            return self.experiment or ""
        return self.toybox or ("" if self.models else self.experiment) or ""

    def models_on(self, models: str) -> str:
        """The models that its runs are of, in a table of these models."""
        return models if models == "toybox" else self.models or models

    def overrides(self, models: str) -> tuple[str, ...]:
        """The words of train.py, for these models, that are the method."""
        words = self.words
        if models == "toybox":
            words = (*(() if self.toybox else words), *self.toybox_words)
        return (f"models={self.models_on(models)}", f"experiment={self.on(models)}", *words)

    def name(self, models: str) -> str:
        """The `name` of its runs."""
        return self.run_name or self.on(models)


@dataclass(frozen=True)
class Table:
    """A table, or a figure that has one."""

    title: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...] = ()  # of MEASURES; none where nothing is scored
    note: str = ""


PREFERRED = "preferred"
MEASURES = {  # column -> its name in evaluation.json (PREFERRED: in study.json), decimals
    "CLIP Score": ("clip_score", 1),
    "R-Precision": ("r_precision", 1),
    "R-Precision, held out": ("r_precision", 1),
    "words right": ("attributes", 2),
    "FID": ("fid", 1),
    "Janus, %": ("janus", 1),
    "R": ("resultant_length", 2),  # how well the object turns with the camera
    "roughness, degrees": ("roughness", 1),
    "users prefer, %": (PREFERRED, 1),  # people say that: evaluate.py study=FILES
    "s a step, relative": ("seconds_per_step", 2),
    "memory, relative": ("peak_memory_gb", 2),
}
HELD_OUT = "R-Precision, held out"  # of the prompts whose combination of words nothing was trained on
TOYBOX_ONLY = (HELD_OUT, "words right")
RELATIVE = ("s a step, relative", "memory, relative")  # to the first row

TABLE1 = ("CLIP Score", "R-Precision", "users prefer, %")
TABLE2 = ("CLIP Score", "FID")
TABLE3 = ("Janus, %", *RELATIVE)
TABLE3_SDS = (50, 16.1)  # minutes and GB on an A800
FIG10_SUM = "fig10/sum"
METHODS = {  # distillation= of conf/, and what the method is called
    "jsd": "SDS",
    "vsd": "VSD",
    "esd": "ESD",
    "asd": "ASD",
    "csd": "CSD (classifier)",
    "nfsd": "NFSD",
    "bridge": "SDS-Bridge",
    "ism": "ISM",
    "sdi": "SDI",
    "pfd": "PFD",
    "perp_neg": "Perp-Neg",
}
ENERGIES = {"none": "", "mvs": " + multi-view energy", "cls": " + classifier energy"}


def read_methods(key: str, text: str) -> tuple[str, ...]:
    """Methods of METHODS with commas between them, each once. Raises UserError, which names `key`, for another."""
    methods = tuple(dict.fromkeys(text.split(",")))
    if wrong := [method for method in methods if method not in METHODS]:
        raise UserError(f"{key}: choose among {', '.join(METHODS)}, got {wrong[0]!r}")
    return methods


def _paper(columns: Sequence[str], *values: str) -> dict[str, str]:
    return dict(zip(columns, values, strict=True))


def _table3(janus: str, minutes: float, gb: float) -> dict[str, str]:
    return _paper(TABLE3, janus, *(f"{x / sds:.2f}" for x, sds in zip((minutes, gb), TABLE3_SDS, strict=True)))


def _distillation(method: str, energy: str) -> Row:
    """A method of METHODS with an energy, all at Table 3's protocol, whose runs SDS and JSD share."""
    label = METHODS[method] + ENERGIES[energy]
    experiment, name = f"table3/{energy}", f"distillation/{method}_{energy}"
    if method == "jsd":
        return Row(label, experiment)
    return Row(label, experiment, words=(f"distillation={method}", f"name={name}"), run_name=name)


def tables(weights: Sequence[str] = (), methods: Sequence[str] = tuple(METHODS)) -> dict[str, Table]:
    """Every table and figure by name.

    weights: of Fig. 10's sums, as text
    methods: of METHODS, those of the table of distillations
    """
    sums = [
        Row(f"SDS + {w} MVDream", FIG10_SUM, words=(f"schedule.loss.mvdream={w}",), run_name=f"{FIG10_SUM}_{w}")
        for w in weights
    ]
    return {
        "table1": Table(
            "Table 1: quality",
            (
                Row("SDS", "table3/none"),
                Row(
                    "DreamFusion (IF)",
                    "dreamfusion/if",
                    _paper(TABLE1, "20.1", "27.7", "18.2"),
                    words=("schedule.steps=5000",),
                    toybox="table1/dreamfusion_pixel",
                    models="if",
                ),
                Row("ProlificDreamer", "table1/prolificdreamer", _paper(TABLE1, "25.0", "18.7", "16.2")),
                Row("MVDream", "table1/mvdream", _paper(TABLE1, "20.8", "33.6", "23.5")),
                Row("Magic3D", "magic3d/refine"),
                Row("JointDreamer", "table3/mvs", _paper(TABLE1, "27.7", "88.5", "42.1")),
            ),
            ("CLIP Score", "R-Precision", HELD_OUT, "words right", "users prefer, %"),
            "Paper: 153 captions of COCO, 20 views, 5,000 iterations at 64x64. DreamFusion distils DeepFloyd IF "
            "(the toybox: its own model over pixels), SDS the same prior as the others. Its Magic3D is shown in "
            "pictures only.",
        ),
        "table2": Table(
            "Table 2: what each part adds",
            (
                Row("SDS", "table2/sds", _paper(TABLE2, "20.0", "429.2")),
                Row("JSD", "table2/jsd", _paper(TABLE2, "27.6", "360.7")),
                Row("+ CFG switching", "table2/jsd_cfg", _paper(TABLE2, "28.2", "357.6")),
                Row("+ geometry fading", "table2/jointdreamer", _paper(TABLE2, "28.8", "353.9"), toybox="table3/mvs"),
            ),
            TABLE2,
            "Paper: 30% of the COCO captions; which pictures its FID is against is not at hand.",
        ),
        "table3": Table(
            "Table 3: energies",
            (
                Row("SDS", "table3/none", _table3("100", *TABLE3_SDS)),
                Row("JSD, classifier", "table3/cls", _table3("12.5", 80, 22.1)),
                Row("JSD, image to image", "table3/i2i", _table3("31.2", 119, 16.0)),
                Row("JSD, multi-view", "table3/mvs", _table3("6.2", 54, 19.4)),
            ),
            TABLE3,
            "Paper: 16 prompts, Janus counted by people; 50 minutes and 16.1 GB for SDS. Our times are of runs that "
            "shared the machine.",
        ),
        "mesh": Table(
            "Meshes: the second stages of Magic3D and JointDreamer, after their NeRFs",
            (
                Row("Magic3D, NeRF (SDS)", "magic3d/coarse"),
                Row("Magic3D", "magic3d/refine"),
                Row("JointDreamer, NeRF", "table2/jointdreamer", toybox="table3/mvs"),
                Row("JointDreamer-DMTet", "jointdreamer_dmtet", toybox_words=("init_from=table3/mvs",)),
            ),
            ("Janus, %", "FID", "roughness, degrees", "CLIP Score", "words right", *RELATIVE),
            "The paper shows pictures of these, no numbers.",
        ),
        "distillation": Table(
            "Score distillations, each with and without an energy between the views",
            tuple(_distillation(method, energy) for method in methods for energy in ENERGIES),
            ("Janus, %", "R", "R-Precision", "FID", "words right", *RELATIVE),
            "What is subtracted, or what the prior wants, is another in each; all else is Table 3's. The paper has no "
            "such table.",
        ),
        "fig8": Table(
            "Fig. 8: training loss",
            (Row("SDS", "table3/none"), Row("JSD", "table3/mvs")),
            note="The paper's curves are not at hand.",
        ),
        "fig10": Table(
            "Fig. 10: SDS + weight x MVDream",
            (Row("SDS", "table3/none"), *sums, Row("MVDream alone", "table1/mvdream"), Row("JSD", "table3/mvs")),
            ("Janus, %", "R-Precision", HELD_OUT, "CLIP Score", "words right"),
            "The paper's weights and values are not at hand.",
        ),
    }
