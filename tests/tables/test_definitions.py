"""The tables' rows are experiments of conf/, and those that share runs are the same experiment."""

from pathlib import Path

import pytest

from jointdreamer.cli import main as cli
from jointdreamer.energies.registry import ENERGIES
from jointdreamer.project import CONF
from jointdreamer.tables.__main__ import Settings, resolve
from jointdreamer.tables.definitions import MEASURES, METHODS, TABLE3_SDS, Row, tables
from jointdreamer.tables.runs import plan_jobs

TABLES = tables(("0.1", "3"))
ROWS = {(name, row.label): row for name, table in TABLES.items() for row in table.rows if row.experiment}


def composed(experiment, models="toybox", *words):
    cfg = cli.composed("config", [f"models={models}", f"experiment={experiment}", *words], models)
    return {key: value for key, value in cfg.items() if key != "name"}


@pytest.mark.parametrize(
    "row", [row for row in ROWS.values() if (row.words or row.toybox) and row.on("toybox")], ids=lambda row: row.label
)
def test_a_row_s_name_is_its_run_s_name(row):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", ["models=toybox", f"experiment={row.on('toybox')}", *row.words])
    assert cfg.name == row.name("toybox")


def test_what_is_shared_on_the_toybox_is_the_same():
    row = ROWS["table2", "+ geometry fading"]
    assert (row.on("toybox"), row.on("sd21")) == ("table3/mvs", "table2/jointdreamer")
    assert composed("table2/jointdreamer") == composed("table3/mvs")
    assert composed("table2/jointdreamer", "sd21") != composed("table3/mvs", "sd21")


def test_dreamfusion_has_models_of_its_own_beside_sd_2_1_and_its_own_prior_on_the_toybox():
    row = ROWS["table1", "DreamFusion (IF)"]
    assert row.on("toybox") == "table1/dreamfusion_pixel" and row.on("sd21") == "dreamfusion/if"
    plan = {models: plan_jobs(TABLES["table1"], models, ["a bear"], Path("p.txt"), [0], Path("runs")) for models in
            ("toybox", "sd21")}  # fmt: skip
    jobs = {models: next(job for job in all_jobs if job.row is row) for models, all_jobs in plan.items()}
    assert jobs["sd21"].words[:3] == ("models=if", "experiment=dreamfusion/if", "schedule.steps=5000")
    assert jobs["toybox"].words[:3] == ("models=toybox", "experiment=table1/dreamfusion_pixel", "prompt_file=p.txt")
    cfg = resolve(row, Settings("table1", models="sd21"))
    assert cfg["models"]["name"] == "if" and cfg["schedule"]["steps"] == 5000 and cfg["schedule"]["resolution"] == 64
    cfg = resolve(row, Settings("table1", models="toybox"))
    assert cfg["models"]["name"] == "toybox" and cfg["models"]["text_to_image"]["kind"] == "pixel"
    assert cfg["schedule"] == resolve(ROWS["table1", "SDS"], Settings("table1", models="toybox"))["schedule"]


def test_a_method_of_other_models_without_a_toybox_experiment_is_a_row_of_real_ones_alone():
    row = Row("only with IF", "dreamfusion/if", models="if")
    assert (row.on("toybox"), row.on("sd21")) == ("", "dreamfusion/if")


def test_table_3_has_the_energies_of_the_paper():
    found = [composed(row.experiment)["energy"]["name"] for row in TABLES["table3"].rows]
    assert found == ["none", "cls", "i2i", "mvs"] and set(found) <= set(ENERGIES)


def test_fig_10_s_sums_differ_in_their_weight_alone():
    one, two = (composed(row.experiment, "toybox", *row.words) for row in TABLES["fig10"].rows[1:3])
    assert (one["schedule"]["loss"].pop("mvdream"), two["schedule"]["loss"].pop("mvdream")) == (0.1, 3)
    assert one == two and one["energy"]["name"] == "none"


def test_the_paper_s_numbers_stand_in_columns_that_are_there():
    for table in TABLES.values():
        assert set(table.columns) <= MEASURES.keys()
        for row in table.rows:
            assert row.paper.keys() <= set(table.columns), row.label
    relative = TABLES["table3"].rows[1].paper  # 80 minutes and 22.1 GB, by the paper
    assert TABLE3_SDS == (50, 16.1)
    assert (relative["s a step, relative"], relative["memory, relative"]) == ("1.60", "1.37")


def test_every_distillation_is_in_its_table_with_its_energies():
    own = {file.stem for file in (CONF / "distillation").glob("*.yaml")}
    others = {"mvdream", "imagedream", "sum", "agp"}  # a multi-view model alone; two terms
    others |= {"zero123", "magic123", "jsd_image"}  # of a given image
    assert own - others == set(METHODS)
    for row in tables((), ("vsd", "sdi"))["distillation"].rows:
        cfg = composed(row.experiment, "toybox", *row.words)
        method, energy = row.name("toybox").removeprefix("distillation/").split("_")
        (term,) = cfg["distillation"]["terms"].keys() - {"jsd"}
        assert (term, cfg["energy"]["name"]) == (method, energy)
        assert cfg["schedule"]["loss"]["jsd"] == 0 and cfg["schedule"]["loss"][method] == 1
