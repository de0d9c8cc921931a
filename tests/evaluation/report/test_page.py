"""The report in Chromium, opened from the disk. Skipped where there is no Chromium ($CHROMIUM, or on the PATH)."""

import json
import time

import pytest

from benchmarks.chromium import COUNT_CONTEXTS, chromium, find, load_all
from jointdreamer.evaluation.report import aggregate_study, write_report

pytestmark = [pytest.mark.skipif(find() is None, reason="no Chromium here"), pytest.mark.timeout(900)]
OURS = ("file:", "blob:", "data:")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        opened.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        opened.call("Page.addScriptToEvaluateOnNewDocument", source=COUNT_CONTEXTS)
        yield opened


@pytest.fixture
def page(browser, tmp_path):
    browser.forget()
    browser.size(700, 500)
    browser.download_to(tmp_path / "downloads")
    return browser


def test_32_runs(evaluation, tmp_path, page):
    given = evaluation(prompts=[f"object {number}" for number in range(8)])
    index = write_report(given, tmp_path / "report")
    page.open(index)  # how fast, says benchmarks/report.py
    assert page.js("document.querySelectorAll('.card').length") == 32
    assert not [url for url in page.requests if "/models/" in url or "/media/" in url]  # the gallery is below the fold
    page.js("document.getElementById('gallery').scrollIntoView({behavior: 'instant'})")
    page.wait("document.querySelectorAll('.view.loaded').length >= 1")
    assert len({url for url in page.requests if "/models/" in url}) < 16  # what is out of sight is not loaded
    assert load_all(page) == 32
    assert page.js("document.querySelectorAll('model-viewer').length") <= 16  # what is far away is let go
    assert page.js("window.contexts.size") <= 2  # browsers allow about 16
    assert page.errors == [] and [url for url in page.requests if not url.startswith(OURS)] == []

    page.js("document.getElementById('filter-prompt').value = 'OBJECT 3'")
    page.js("document.getElementById('filter-prompt').dispatchEvent(new Event('input'))")
    page.wait("document.querySelectorAll('.card').length === 4")
    page.js("document.querySelector('#filter-method input[value=mvs]').click()")
    page.js("document.querySelector('#filter-seed input[value=\"0\"]').click()")
    assert page.js("[...document.querySelectorAll('.card .tags')].map(t => t.textContent.slice(0, 11))") == [
        "noneseed 1C"
    ]
    page.js("document.querySelector('#filter-method input[value=mvs]').click()")
    page.js("document.getElementById('compare').click()")
    assert page.js("document.querySelectorAll('.row').length") == 1
    assert page.js("document.querySelectorAll('.row .card').length") == 2
    load_all(page)
    # turning one of them turns the others
    page.js("document.querySelectorAll('.view')[0].turned('1rad 1rad 3m')")
    assert page.js("document.querySelectorAll('.view')[1].viewer.cameraOrbit") == "1rad 1rad 3m"
    page.js("document.querySelector('.more').click()")
    page.wait("document.querySelector('dialog[open] .view.loaded') !== null")
    assert page.errors == []


def test_numbers_and_plots(evaluation, tmp_path, page):
    given = evaluation()
    share = {"yes": 1, "wins": 1, "n": 4, "rate": 0.25, "share": 0.25, "low": 0.1, "high": 0.5}
    kappa = {"kappa": None, "subjects": 0}
    study = {"raters": ["<b>Ann"], "methods": [{"method": "mvs", "objects": 2, "janus": share, "preferred": share}]}
    study["agreement"] = {"statistic": "Fleiss' kappa", "janus": kappa, "preferred": kappa}
    page.open(write_report({**given, "study": study}, tmp_path / "report"))
    assert "25.0 (10.0 – 50.0)" in page.js("document.getElementById('study-table').textContent")
    means = page.js(
        "[...document.querySelectorAll('#table tbody tr')].map(r => r.children[2].querySelector('.mean').textContent)"
    )
    assert means == [f"{group['clip_score']['mean']:.1f}" for group in given["groups"]]
    assert page.js("document.querySelectorAll('figure').length") == 5  # consistency has no value
    assert page.js("document.querySelectorAll('figure')[0].querySelectorAll('.dot').length") == 8
    assert page.js("document.querySelectorAll('figure')[0].querySelectorAll('.bar, path.mean').length") == 4
    page.js("[...document.querySelectorAll('#run-table th button')].find(b => b.textContent === 'CLIP Score').click()")
    column = page.js(
        "[...document.querySelectorAll('#run-table tbody tr')].map(r => Number(r.children[4].textContent))"
    )
    assert column == sorted(column) and len(column) == 8
    assert "runs/<i>x: unfinished" in page.js("document.getElementById('left-out').textContent")


def test_html_in_prompts_is_text(evaluation, tmp_path, page):
    given = evaluation()
    hostile = given["runs"][2]["prompt"]
    assert "onerror" in hostile
    index = write_report(given, tmp_path / "report")
    page.open(index)
    load_all(page)
    page.js("document.querySelectorAll('.more')[2].click()")
    assert page.js("document.querySelectorAll('.card h3')[2].textContent") == hostile
    assert page.js("document.querySelector('dialog h2').textContent") == hostile
    page.open(index.with_name("study.html"))
    page.js("document.getElementById('rater').value = '<img src=x onerror=window.hacked=1>'")
    page.js("document.querySelector('#start button').click()")
    time.sleep(0.2)
    for name in (index.name, "study.html"):
        page.open(index.with_name(name))
        assert page.js("window.hacked === undefined && !document.querySelector('img[src=x]')")
        assert page.js("[...document.querySelectorAll('b')].every(node => !node.textContent.includes('pig'))")
    assert page.errors == [] and [url for url in page.requests if not url.startswith(OURS)] == []


def test_a_damaged_model_says_so_and_hurts_no_other(evaluation, tmp_path, page):
    index = write_report(evaluation(prompts=("a pig",), seeds=(0,)), tmp_path / "report")
    models = page_models = sorted((index.parent / "models").iterdir())
    models[0].unlink()
    page.open(index)
    page.js("document.getElementById('gallery').scrollIntoView()")
    page.wait(
        "document.querySelectorAll('.view.loaded').length === 1 && document.querySelectorAll('.failed').length === 1"
    )
    assert page_models[0].name in page.js("document.querySelector('.failed .hint').textContent")


def test_a_rater_with_a_keyboard(evaluation, tmp_path, page):
    """Janus for every object of `none`, never for `mvs`, and mvs preferred: known, as the script can look behind."""
    given = evaluation()
    study = write_report(given, tmp_path / "report").with_name("study.html")
    page.open(study)
    page.js("document.getElementById('rater').value = 'Ann Ämilie'")
    page.js("document.querySelector('#start button').click()")
    assert "mvs" not in page.js("document.getElementById('trial').innerHTML").replace("mvs_", "")
    orders, prompts = [], []
    for number in range(4):
        page.wait("document.querySelectorAll('.object .view.loaded').length === 2")
        shown = page.js("trial().shown.map(index => runs[index].method)")
        orders.append(tuple(shown))
        prompts.append(page.js("document.getElementById('prompt').textContent"))
        assert page.js("document.getElementById('next').disabled")
        page.key("Enter")  # not yet: nothing is answered
        assert page.js("state.position") == number
        page.key("ArrowRight")  # to 2, and on to 1 again
        page.key("ArrowRight")
        for method in shown:
            page.key("y" if method == "none" else "n")
        page.key(str(1 + shown.index("mvs")))
        if number == 1:  # the browser is closed and opened again in the middle
            page.key("Backspace")
            page.key("Enter")
            page.open(study)
            assert "2 of 4 are answered" in page.js("document.getElementById('resume-note').textContent")
            page.js("document.querySelector('#start button').click()")
        page.key("Enter")
    assert set(prompts[:2]) == {run["prompt"] for run in given["runs"]}  # each prompt once before any twice
    page.wait("!document.getElementById('end').hidden")
    page.js("document.getElementById('download').click()")
    expected = tmp_path / "downloads" / "study_Ann_A_milie_01234567.json"
    for _ in range(200):
        if expected.exists():
            break
        time.sleep(0.05)
    assert page.errors == [] and [url for url in page.requests if not url.startswith(OURS)] == []

    answers = json.loads(expected.read_text(encoding="utf-8"))["answers"]
    assert [tuple(entry["method"] for entry in answer["objects"]) for answer in answers] == orders
    found = aggregate_study([expected], given)
    assert found["raters"] == ["Ann Ämilie"] and found["trials"] == 4
    mvs, none = found["methods"]
    assert mvs["janus"]["rate"] == 0 and none["janus"]["rate"] == 1 and none["janus"]["n"] == 4
    assert mvs["preferred"]["share"] == 1 and none["preferred"]["wins"] == 0


def test_a_rater_with_a_phone(evaluation, tmp_path, page):
    given = evaluation(methods=("mvs", "none", "random"), seeds=(0,))
    index = write_report(given, tmp_path / "report")
    page.size(360, 740, mobile=True)
    page.open(index)
    assert page.js("document.documentElement.scrollWidth") == 360
    page.open(index.with_name("study.html"))
    page.js("document.getElementById('rater').value = 'Bob'")
    page.js("document.querySelector('#start button').click()")
    page.wait("document.querySelectorAll('.object').length === 3")
    assert page.js("document.documentElement.scrollWidth") == 360
    assert page.js("Math.min(...[...document.querySelectorAll('.choices button')].map(b => b.offsetHeight))") >= 44
    for _ in range(2):
        page.js("document.querySelectorAll('.object .no').forEach(button => button.click())")
        page.js("document.querySelectorAll('.object .prefer')[1].click()")
        page.js("document.getElementById('next').click()")
    assert page.js("state.trials.filter(complete).length") == 2 and not page.js("document.getElementById('end').hidden")


def test_orders_are_drawn_anew(evaluation, tmp_path, page):
    index = write_report(evaluation(prompts=[f"{n}" for n in range(8)], methods=("a", "b")), tmp_path / "report")
    page.open(index.with_name("study.html"))
    first = page.js("[...Array(200)].flatMap(() => drawOrder()).map(trial => runs[trial.shown[0]].method)")
    assert len(first) == 3200 and abs(first.count("a") / 3200 - 0.5) < 0.04  # 4 standard deviations
    assert page.js("JSON.stringify(drawOrder()) !== JSON.stringify(drawOrder())")


def test_an_object_without_a_front_is_not_called_free_of_janus(evaluation, tmp_path, page):
    given = evaluation(prompts=("a pig",), methods=("none", "mvs", "cls"), seeds=(0,))
    for run, janus, front, resultant_length in zip(given["runs"], (0, 0, 1), (0, 1, 1), (0.02, 0.99, 0.1), strict=True):
        run |= {"janus": bool(janus), "front": bool(front), "resultant_length": resultant_length}
    page.open(write_report(given, tmp_path / "report"))
    tags = page.js("[...document.querySelectorAll('.card .tags')].map(tags => tags.textContent)")
    assert [text.rpartition("%")[2] for text in tags] == ["no frontR 0.02", "no JanusR 0.99", "JanusR 0.10"]
    assert page.js("document.querySelectorAll('.tags .no').length") == 1
