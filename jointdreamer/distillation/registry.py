"""Terms by name."""

from collections.abc import Callable, Mapping
from typing import Any

from jointdreamer.arguments import build_by_name, parameters_of
from jointdreamer.distillation.base import Term
from jointdreamer.energies.base import Energy
from jointdreamer.errors import UserError
from jointdreamer.priors.base import Prior
from jointdreamer.priors.prompts import Prompts

TERMS = {"jsd": "jointdreamer.distillation.joint:JointScoreDistillation"}  # short name -> where it lives


def build_terms(
    terms: Mapping[str, Mapping[str, Any]],
    shared: Mapping[str, Any],
    energy: Energy | None,
    prior: Callable[[str], Prior],
    prompts: Prompts,
) -> list[Term]:
    """The terms of a run.

    terms: the options of each, by the name of its loss in `schedule.loss`; `kind` is a short name (jsd), or your own
        "module:Class"
    shared: options for every term whose class has them, and that does not say otherwise
    energy: for the first term that takes one
    prior: gives the prior of a role among the models, which a term names as `prior`
    prompts: what that prior embeds

    Raises UserError for a name, class or option that does not exist.
    """
    built: dict[str, Term] = {}
    for name, given in terms.items():
        if not isinstance(given, Mapping):
            raise UserError(f"distillation.terms.{name}={given!r}: wanted a group of settings")
        options = dict(given)
        kind, family = options.pop("kind", "jsd"), f"distillation.terms.{name}"
        wanted = parameters_of(kind, TERMS, Term, family)
        options |= {key: value for key, value in shared.items() if key in wanted and key not in options}
        if "prior" in wanted:
            model = prior(options["prior"])
            options["prior"] = model
            if "text" in wanted:
                options["text"] = model.embed(prompts)
        if "energy" in wanted:
            options["energy"], energy = energy, None
        if "timesteps" in options:
            options["timesteps"] = built[options["timesteps"]] if options["timesteps"] else None
        if "name" in wanted:
            options["name"] = name
        built[name] = build_by_name(kind, TERMS, Term, family, options)
    return list(built.values())
