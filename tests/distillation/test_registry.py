"""Terms from options: a baseline may ask another prior than the term's, if it can be asked about the same latents."""

from typing import Any

import pytest
import torch

from jointdreamer.cameras import Rig
from jointdreamer.diffusion import NoiseProcess
from jointdreamer.distillation.registry import asks_image, build_terms, check_terms, takes_energy
from jointdreamer.energies.none import NoEnergy
from jointdreamer.errors import UserError
from jointdreamer.priors.prompts import Prompts, TextEmbeddings
from tests.priors.known import PicturePrior


class Named(PicturePrior):
    """A prior whose text embeddings say who made them."""

    def __init__(self, number, channels=4):
        super().__init__()
        self.number = number
        self.channels = channels

    @property
    def latent_space(self):
        return self.channels, 0.18215, 0.0

    def embed(self, prompts):
        return TextEmbeddings(torch.full((4, 5, 3), float(self.number)), torch.zeros(2, 5, 3))

    def predict(self, x_t, t, conditions, cameras):
        return [x_t for _ in conditions]


def built(baseline, **priors):
    terms = {"asd": {"prior": "first", "baseline": baseline}}
    found: Any = build_terms(terms, priors.__getitem__, NoEnergy, Prompts("a cat"), Rig())
    return found[0].baseline


def test_a_baseline_asks_the_term_s_prior_or_one_of_its_own_with_its_own_text():
    first, second = Named(1), Named(2)
    own = built({"name": "shifted", "prior": "second"}, first=first, second=second)
    assert own.prior is second and (own.text.cond == 2).all()
    shared = built({"name": "shifted"}, first=first)
    assert shared.prior is first and (shared.text.cond == 1).all()


def test_a_prior_of_other_noise_levels_or_latents_is_refused():
    other = Named(2)
    other.process = NoiseProcess(other.process.alpha.flip(0), other.process.sigma.flip(0))
    with pytest.raises(UserError, match="asd.baseline.prior: its noise process is another one"):
        built({"name": "shifted", "prior": "second"}, first=Named(1), second=other)
    with pytest.raises(UserError, match=r"its latents are \(16, .*\), the term's prior has \(4,"):
        built({"name": "shifted", "prior": "second"}, first=Named(1), second=Named(2, channels=16))


def test_a_part_that_asks_no_prior_takes_none():
    with pytest.raises(UserError, match="asd.baseline.prior=second: noise asks no prior"):
        check_terms({"asd": {"prior": "first", "baseline": {"name": "noise", "prior": "second"}}})


def test_a_target_is_of_the_term_s_own_prior():
    terms = {"sds": {"prior": "first", "target": {"name": "bridge", "prior": "second"}}}
    priors = {"first": Named(1), "second": Named(2)}
    with pytest.raises(UserError, match="sds.target.prior=second: .*the term's own prior"):
        check_terms(terms)
    with pytest.raises(UserError, match="sds.target.prior=second: .*the term's own prior"):
        build_terms(terms, priors.__getitem__, NoEnergy, Prompts("a cat"), Rig())


def test_two_terms_with_a_loss_of_one_name_are_refused():
    lora = {"prior": "first", "baseline": {"name": "lora"}}
    with pytest.raises(UserError, match="two of them return the loss 'lora'"):
        check_terms({"vsd": lora, "other": {**lora, "prior": "second"}})
    check_terms({"vsd": lora, "sds": {"prior": "second"}})


def test_priors_that_share_timesteps_must_have_as_many():
    first, second = Named(1), Named(2)
    terms = {"sds": {"prior": "first"}, "other": {"prior": "second", "timesteps": "sds"}}

    def build():
        return build_terms(terms, {"first": first, "second": second}.__getitem__, NoEnergy, Prompts("a cat"), Rig())

    build()
    second.process = NoiseProcess(second.process.alpha[:500], second.process.sigma[:500])
    with pytest.raises(UserError, match="prior of other has 500 timesteps, and the prior that draws them 1000"):
        build()


def test_who_is_told_an_image_and_who_asks_the_energy():
    models: Any = {"text_to_image": {}, "novel_view": {"kind": "wonder3d"}, "imagedream": {}, "own": {"kind": "latent"}}
    models |= {"theirs": {"kind": "jointdreamer.priors.zero123:StableZero123"}}
    terms: Any = {role: {"prior": role} for role in models}
    terms |= {"picture": {"kind": "reference"}, "nobody": {"prior": "nowhere"}}
    assert asks_image(terms, models) == ["novel_view", "imagedream", "theirs", "picture"]
    assert takes_energy(terms) and not takes_energy({"picture": {"kind": "reference"}})
