"""Terms by name."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from jointdreamer.arguments import build_by_name, check_arguments, function_of, member_of, parameters_of
from jointdreamer.cameras import Rig
from jointdreamer.distillation.base import Term
from jointdreamer.distillation.baselines import Baseline
from jointdreamer.distillation.targets import Target
from jointdreamer.energies.base import Energy
from jointdreamer.errors import UserError
from jointdreamer.priors.base import Prior
from jointdreamer.priors.imagedream import ImageDream
from jointdreamer.priors.novel_view import NovelView
from jointdreamer.priors.prompts import Prompts
from jointdreamer.priors.registry import NOVEL_VIEW, PRIORS, ROLES
from jointdreamer.reference import Reference

BASELINES = {  # what a score distillation subtracts
    "noise": "jointdreamer.distillation.baselines:AddedNoise",
    "zero": "jointdreamer.distillation.baselines:Zero",
    "lora": "jointdreamer.distillation.lora:LoRA",
    "inverted": "jointdreamer.distillation.inversion:InvertedNoise",
    "interval": "jointdreamer.distillation.inversion:IntervalNoise",
    "shifted": "jointdreamer.distillation.inversion:ShiftedNoise",
}
TARGETS = {  # what the prior wants
    "cfg": "jointdreamer.distillation.targets:ClassifierFree",
    "bridge": "jointdreamer.distillation.targets:Bridge",
    "coefficients": "jointdreamer.distillation.targets:Coefficients",
    "noise_free": "jointdreamer.distillation.targets:NoiseFree",
    "perp_neg": "jointdreamer.distillation.targets:PerpNeg",
    "probability_flow": "jointdreamer.distillation.targets:ProbabilityFlow",
}
PARTS: dict[str, tuple[dict[str, str], type]] = {"baseline": (BASELINES, Baseline), "target": (TARGETS, Target)}
TERMS = {  # short name -> where it lives
    "jsd": "jointdreamer.distillation.joint:JointScoreDistillation",
    "reference": "jointdreamer.distillation.reference:ReferenceView",
    "agp": "jointdreamer.distillation.aligned:AlignedGeometry",
}
# Objects, or what the config cannot say
BUILT = ("prior", "text", "energy", "timesteps", *PARTS, "name", "reference", "ground")


def options_of(name: str, given: Any, shared: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A term's kind, and its options as the config says them. Raises UserError for a name or class without a term."""
    family = f"distillation.terms.{name}"
    if not isinstance(given, Mapping):
        raise UserError(f"{family}={given!r}: wanted a group of settings")
    kind = given.get("kind", "jsd")
    wanted = parameters_of(kind, TERMS, Term, family)
    common = {key: value for key, value in shared.items() if key in wanted}
    return kind, {**common, **{key: value for key, value in given.items() if key != "kind"}}


def check_terms(terms: Mapping[str, Any], **shared: Any) -> None:
    """Refuse, before anything is loaded, what `build_terms` would refuse. Raises UserError, one line."""
    earlier: list[str] = []
    for name, given in terms.items():
        family = f"distillation.terms.{name}"
        kind, options = options_of(name, given, shared)
        if options.get("timesteps") not in (None, *earlier):
            came = options["timesteps"]
            raise UserError(f"{family}.timesteps={came!r}: wanted the name of a term before it, or null")
        earlier.append(name)
        for part in PARTS:
            if options.get(part) is not None:
                check_part(part, options[part], f"{family}.{part}")
        function = function_of(kind, TERMS, Term, family)
        if "prior" in parameters_of(kind, TERMS, Term, family) and "prior" not in options:
            raise UserError(f"{family}.prior is missing: say {family}.prior=text_to_image, or another of `models`")
        for key, value in options.items():
            if key not in BUILT:  # under the name by which the user said it
                check_arguments(function, {key: value}, family if key in given else "distillation", whole=False)
    names = loss_names(terms)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(
            f"distillation.terms: two of them return the loss {twice!r}, which has one weight: wanted only one of them"
        )


def loss_names(terms: Mapping[str, Any]) -> list[str]:
    """The names that `schedule.loss` may give a weight to: the terms' own, and those of their parts and classes."""
    names = list(terms)
    for name, options in terms.items():
        if isinstance(options, Mapping):
            kind = options.get("kind", "jsd")
            names += getattr(member_of(kind, TERMS, Term, f"distillation.terms.{name}"), "loss_names", ())
        if isinstance(options, Mapping) and (baseline := options.get("baseline")):
            member: Any = member_of(baseline["name"], BASELINES, Baseline, f"distillation.terms.{name}.baseline")
            names += getattr(member, "loss_names", ())
    return names


def asks_text(terms: Mapping[str, Any], models: Mapping[str, Any]) -> list[str]:
    """The terms whose prior, or the prior of a part, reads the prompt."""
    found = []
    for name, options in terms.items():
        parts = [options, *(options.get(part) for part in PARTS)] if isinstance(options, Mapping) else []
        roles = [one["prior"] for one in parts if isinstance(one, Mapping) and one.get("prior")]
        if any((models.get(role) or {}).get("kind") not in NOVEL_VIEW for role in roles):
            found.append(name)
    return found


def asks_image(terms: Mapping[str, Any], models: Mapping[str, Any]) -> list[str]:
    """The terms that are told a given image, by themselves or by their prior."""
    found = []
    for name, given in terms.items():
        wanted = _wanted(name, given)
        if "reference" in wanted or ("prior" in wanted and _is_told_image(given.get("prior"), models)):
            found.append(name)
    return found


def _is_told_image(role: str | None, models: Mapping[str, Any]) -> bool:
    if role is None or not isinstance(options := models.get(role), Mapping):
        return False
    member = member_of(options.get("kind") or ROLES.get(role, role), PRIORS, Prior, f"models.{role}")
    return isinstance(member, type) and issubclass(member, NovelView | ImageDream)


def takes_energy(terms: Mapping[str, Any]) -> bool:
    """Whether any term asks the energy."""
    return any("energy" in _wanted(name, given) for name, given in terms.items())


def _wanted(name: str, given: Any) -> set[str]:
    """The options of a term's class."""
    return parameters_of(options_of(name, given, {})[0], TERMS, Term, f"distillation.terms.{name}")


def check_part(part: str, given: Any, family: str) -> None:
    """Refuse what `build_part` would refuse. Raises UserError, one line."""
    known, base = PARTS[part]
    if not isinstance(given, Mapping) or "name" not in given:
        raise UserError(f"{family}={given!r}: wanted a group with a name, {family}.name={next(iter(known))}")
    own = {key: value for key, value in given.items() if key not in ("name", "prior")}
    check_arguments(function_of(given["name"], known, base, family), own, family, whole=False)
    if given.get("prior") and part == "target":
        raise UserError(
            f"{family}.prior={given['prior']}: a target is told what the term's own prior predicts, leave it out"
        )
    if given.get("prior") and "prior" not in parameters_of(given["name"], known, base, family):
        raise UserError(f"{family}.prior={given['prior']}: {given['name']} asks no prior, leave it out")


def build_part(part: str, given: Mapping[str, Any], family: str, prior: Prior, **shared: Any) -> Any:
    """A term's baseline or target: name, a short one or your own "module:Class", and its options.

    prior: the term's, or what it asks instead
    shared: options for every class that has them
    """
    known, base = PARTS[part]
    wanted = parameters_of(given["name"], known, base, family)
    shared = {key: value for key, value in {"prior": prior, **shared}.items() if key in wanted}
    own = {key: value for key, value in given.items() if key not in ("name", "prior")}
    return build_by_name(given["name"], known, base, family, {**shared, **own})


def check_same_latents(prior: Prior, other: Prior, family: str) -> None:
    """Raise UserError, one line, for a second prior that cannot be asked about the first one's noised latents."""
    if not torch.equal(prior.process.alpha, other.process.alpha):
        raise UserError(f"{family}.prior: its noise process is another one than that of the term's prior")
    if prior.latent_space != other.latent_space:
        raise UserError(
            f"{family}.prior: its latents are {other.latent_space}, the term's prior has {prior.latent_space} "
            "(channels, scale, shift): take one of the same autoencoder"
        )


def what_prior_is_told(prior: Prior, prompts: Prompts, reference: Reference | None, ground: float, name: str) -> Any:
    """The prompt as the prior embeds it, the given image, or both. Raises UserError without an image that it reads."""
    if isinstance(prior, ImageDream):
        prior.give_image(the_image(reference, name).on(ground))
    if not isinstance(prior, NovelView):
        return prior.embed(prompts)
    image = the_image(reference, name)
    return prior.told(image.on(ground), image.cameras(prior.image_size))


def the_image(reference: Reference | None, name: str) -> Reference:
    """The given image. Raises UserError if there is none."""
    if reference is None:
        raise UserError(f"distillation.terms.{name} wants a picture: give one, image=FILE")
    return reference


def build_terms(
    terms: Mapping[str, Mapping[str, Any]],
    prior: Callable[[str], Prior],
    energy: Callable[[], Energy],
    prompts: Prompts,
    rig: Rig,
    reference: Reference | None = None,
    ground: float = 1.0,
    **shared: Any,
) -> list[Term]:
    """The terms of a run: first their priors are read, then the energy, and last the prompt is embedded.

    terms: the options of each, by the name of its loss in `schedule.loss`; `kind` is a short name (jsd), or your own
        "module:Class"
    prior: gives the prior of a role among the models, which a term names as `prior`
    energy: gives the energy, for the first term that takes one
    prompts: what each prior embeds
    rig: must suit them all
    reference: the given image, for terms, priors and energies that want one
    ground: the grey of its background
    shared: options for every term whose class has them, and that does not say otherwise

    Raises UserError for a name, class or option that does not exist, and a rig that does not suit.
    """
    chosen = {name: options_of(name, given, shared) for name, given in terms.items()}
    wanted = {
        name: parameters_of(kind, TERMS, Term, f"distillation.terms.{name}") for name, (kind, _) in chosen.items()
    }
    roles = [options["prior"] for name, (_, options) in chosen.items() if "prior" in wanted[name]]
    parts = [options[part] for _, options in chosen.values() for part in PARTS if options.get(part) is not None]
    roles += [part["prior"] for part in parts if part.get("prior")]
    priors = {role: prior(role) for role in dict.fromkeys(roles)}
    if first := next((name for name in terms if "energy" in wanted[name]), None):
        chosen[first][1]["energy"] = between = energy()
        between.check_rig(rig)  # before the prompt is embedded, which may have things to say
        between.give_prompt(prompts)
        if reference is not None:
            seen = reference.cameras(8)
            pose = (float(x) for x in (seen.elevation, seen.azimuth, seen.distance))
            between.give_reference(reference.on(ground), *pose)
    built: dict[str, Term] = {}
    for name, (kind, options) in chosen.items():
        if "prior" in wanted[name]:
            options["prior"] = priors[options["prior"]]
        if "text" in wanted[name]:
            options["text"] = what_prior_is_told(options["prior"], prompts, reference, ground, name)
        if "reference" in wanted[name]:
            options |= {"reference": the_image(reference, name), "ground": ground}
        if "name" in wanted[name]:
            options["name"] = name
        for part in PARTS:
            if (given := options.get(part)) is not None:
                family, asked, text = f"distillation.terms.{name}.{part}", options["prior"], options.get("text")
                check_part(part, given, family)
                if given.get("prior"):
                    asked = priors[given["prior"]]
                    check_same_latents(options["prior"], asked, family)
                    text = asked.embed(prompts)
                options[part] = build_part(part, given, family, asked, text=text, prompts=prompts)
        if options.get("timesteps"):
            options["timesteps"] = built[options["timesteps"]]
        built[name] = build_by_name(kind, TERMS, Term, f"distillation.terms.{name}", options)
        built[name].check(rig)
    return list(built.values())
