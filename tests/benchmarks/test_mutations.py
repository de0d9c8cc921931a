"""The faults are still in the code that they are put into, and one that is not noticed is said."""

import pytest

from benchmarks import mutations
from benchmarks.mutations import FAULTS, ROOT, Fault, judge
from jointdreamer.errors import UserError


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_changes_one_place(fault):
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.right) == 1 and fault.wrong != fault.right


def test_what_is_noticed_and_what_is_not(monkeypatch, capsys):
    seen = []

    def failing(tree):
        seen.append((tree / FAULTS[0].file).read_text(encoding="utf-8"))
        return ["mvs", "cls"] if len(seen) == 1 else []

    monkeypatch.setattr(mutations, "unpack", copy_of_the_checkout)
    monkeypatch.setattr(mutations, "failing", failing)
    assert judge(FAULTS[:1]) and FAULTS[0].wrong in seen[0] and FAULTS[0].right not in seen[0]
    assert not judge(FAULTS[:1])
    assert "mvs, cls" in (said := capsys.readouterr().out) and "NOT NOTICED" in said
    with pytest.raises(UserError, match="is not once in"):
        judge([Fault("gone", FAULTS[0].file, "nothing like this", "")])


def copy_of_the_checkout(commit, folder, root):
    for fault in FAULTS:
        (folder / fault.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / fault.file).write_text((root / fault.file).read_text(encoding="utf-8"), encoding="utf-8")
