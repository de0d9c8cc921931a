"""Scenes, priors, energies and terms of a user's own that do not keep the contract: one line that names them."""

import pytest

CODE = '''
import torch
from jointdreamer.distillation.base import Term
from jointdreamer.energies.base import Energy
from jointdreamer.priors.latent import LatentDiffusion
from jointdreamer.scenes.base import Render, Scene


class Flat(Scene):
    """One colour everywhere."""

    def __init__(self):
        super().__init__()
        self.color = torch.nn.Parameter(torch.zeros(3))

    def render(self, cameras, now=None, generator=None, chunk=None, normals=True):
        size = (*cameras.azimuth.shape, 1, cameras.resolution, cameras.resolution)
        rgb = self.color.sigmoid()[:, None, None] * torch.ones(size)
        return Render(rgb, torch.ones(size))

    def parameter_groups(self):
        return {"appearance": [self.color]}


class FlatWithOtherRole(Flat):
    def parameter_groups(self):
        return {"paint": [self.color]}


class FlatWithWrongShape(Flat):
    def render(self, *args, **kwargs):
        render = super().render(*args, **kwargs)
        return Render(render.rgb, render.opacity[:, :, 0])



class Unfinished(Scene):
    def parameter_groups(self):
        return {}


class Vector(Term):
    def forward(self, scene, render, cameras, now, generator):
        return {"vector": render.rgb.mean((0, 1, 3, 4))}


class Number(Term):
    def forward(self, scene, render, cameras, now, generator):
        return render.rgb.mean()


class Unweighted(Term):
    def forward(self, scene, render, cameras, now, generator):
        return {"elsewhere": render.rgb.mean()}


class Short(LatentDiffusion):
    def predict(self, x_t, t, conditions, cameras):
        return super().predict(x_t, t, conditions, cameras)[:1]


class Mean(Energy):
    def forward(self, views):
        return views.x0.mean()


class Nothing(Energy):
    pass
'''
VECTOR = ["+distillation.terms.vector.kind=own:Vector", "+schedule.loss.vector=1"]


@pytest.fixture
def run(launcher, tiny_run, tmp_path):
    """run(*words) -> the exit status and what stderr says, with CODE as the module `own`."""
    (tmp_path / "own.py").write_text(CODE, encoding="utf-8")

    def go(*words: str) -> tuple[int, str]:
        status = launcher.run(tmp_path / "out", tiny_run("prompt=a bear", *words), PYTHONPATH=str(tmp_path))
        return status, (tmp_path / "out" / "stderr").read_text()

    return go


def test_a_scene_that_keeps_the_contract_trains(run):
    status, said = run("scene.name=own:Flat", "energy=none", "schedule.loss.sparsity=0", "schedule.loss.opaque=0")
    assert status == 0, said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["scene.name=own:FlatWithOtherRole"], "schedule.lr.paint is missing: the rate of parameters with that role"),
        (["scene.name=own:FlatWithWrongShape"], "scene FlatWithWrongShape: render's opacity must be (1, 4, 1, "),
        (["scene.name=own:Unfinished"], "scene 'own:Unfinished': Unfinished does not define render"),
        (VECTOR, "term Vector: loss 'vector' must be a scalar tensor, got a tensor of shape (3,)"),
        ([VECTOR[0].replace("Vector", "Number"), VECTOR[1]], "term Number must return its losses by name"),
        ([VECTOR[0].replace("Vector", "Unweighted"), VECTOR[1]], "schedule.loss.elsewhere is missing"),
        (["+models.text_to_image.kind=own:Short"], "prior Short: predict must return the noise for each of 2"),
        (["energy.name=own:Mean"], "energy Mean must return one number per rig"),
        (["energy.name=own:Nothing"], "energy 'own:Nothing': Nothing does not define forward"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_one_that_breaks_it_is_one_line_that_names_it(run, words, says):
    more = ["schedule.loss.sparsity=0", "schedule.loss.opaque=0"] if "scene" in words[0] else []
    status, said = run(*words, *more)
    assert status == 2 and says in said and "Traceback" not in said, said
