"""Whether the tests of the whole step notice a fault: each is put into a copy of the code, one at a time.

    python -m benchmarks.mutations              every fault; about twelve minutes on one core
    python -m benchmarks.mutations sign mask    those whose name has one of these words

The table names the settings of tests/test_reference_step.py that each turns red. The repository is not touched.

Exit status: 0 every fault is noticed, 1 one is not, 2 a mistake in the command.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import Parser, table
from benchmarks.same_bits import ROOT, unpack
from jointdreamer.errors import UserError, one_line

JOINT, GUIDANCE = "jointdreamer/distillation/joint.py", "jointdreamer/priors/guidance.py"
TEST = "tests/test_reference_step.py"


@dataclass(frozen=True)
class Fault:
    """A line of the code, and what it is replaced by."""

    name: str
    file: str
    right: str
    wrong: str


X0_LIMIT = "    if limit is None:\n        return noise_pred\n"
ENERGY_LIMIT = "    if limit is None:\n        return energy_weight\n"
CFG = "return uncond + guidance_scale * (cond - uncond)"
FAULTS = (
    Fault(
        "sign of the energy flipped",
        JOINT,
        "clamp_x0(noise_pred - energy_weight",
        "clamp_x0(noise_pred + energy_weight",
    ),
    Fault("sigma_t dropped", JOINT, "energy_weight * noised.sigma_t * energy_grad", "energy_weight * energy_grad"),
    Fault("x0_limit dropped", JOINT, X0_LIMIT, "    return noise_pred\n"),
    Fault("energy_limit dropped", JOINT, ENERGY_LIMIT, "    return energy_weight\n"),
    Fault("mask of the gradient dropped", JOINT, '(m * grad if mask == "gradient" else grad)', "grad"),
    Fault("mask of the input dropped", JOINT, 'm * x_t if mask == "input" else x_t', "x_t"),
    Fault("mask_floor dropped", JOINT, ".clamp_min(mask_floor)", ""),
    Fault(
        "energy sees the guided x0", JOINT, 'noise_pred if self.energy_x0 == "guided" else predictions[1]', "noise_pred"
    ),
    Fault("w(t) dropped", JOINT, "self.weighting(noised.alpha_t, noised.sigma_t) * (", "1 * ("),
    Fault("a sum over the views", JOINT, ").sum() / n_images", ").sum()"),
    Fault("rescale dropped", GUIDANCE, "return share * factor * x + (1 - share) * x", "return x"),
    Fault("cond and uncond swapped", GUIDANCE, CFG, "return cond + guidance_scale * (uncond - cond)"),
    Fault("guidance dropped", GUIDANCE, CFG, "return cond"),
    Fault("x0_limit of the guidance dropped", GUIDANCE, "x0.clamp(-self.x0_limit, self.x0_limit)", "x0"),
)


def failing(tree: Path) -> list[str]:
    """The settings whose test fails with the code in `tree`. Raises UserError if the tests do not run at all."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", TEST]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise UserError(f"{TEST} does not run: {one_line(done.stdout[-500:])}")
    return re.findall(r"^FAILED .*\[(.+?)\]", done.stdout, re.MULTILINE)


def judge(faults: Sequence[Fault], root: Path = ROOT) -> bool:
    """Try each fault and print the table; whether all were noticed. Raises UserError if the code has changed."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="mutations-") as temporary:
        tree = Path(temporary) / "code"
        unpack("HEAD", tree, root)
        for fault in faults:
            file = tree / fault.file
            text = file.read_text(encoding="utf-8")
            if text.count(fault.right) != 1:
                raise UserError(
                    f"{fault.name}: {fault.right!r} is not once in {fault.file} any more: mend the fault here"
                )
            file.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
            try:
                rows.append([fault.name, ", ".join(failing(tree)) or "NOT NOTICED"])
            finally:
                file.write_text(text, encoding="utf-8")
            print(": ".join(rows[-1]), flush=True)
    print("\n" + table(["fault", "settings that fail"], rows))
    return all(row[1] != "NOT NOTICED" for row in rows)


def main() -> int:
    parser = Parser(prog="python -m benchmarks.mutations", description=__doc__, allow_abbrev=False)
    parser.add_argument("words", nargs="*", help="of the faults' names; all without")
    words = parser.parse_args().words
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    try:
        if not chosen:
            raise UserError(
                f"no fault has {' or '.join(words)} in its name: there are {', '.join(f.name for f in FAULTS)}"
            )
        return 0 if judge(chosen) else 1
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
