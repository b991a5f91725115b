"""What of a plan may come from a cache in another place, and go there. Pure.

A step with secrets (agents of SSH keys among them) that ran in a root that strangers made would tell
them. So of a cache whose writers are not trusted nothing is taken for it, for what it stands on, or for
what stands on it; and what may hold a secret, a layer of such a step or of one after it, is not sent.
"""

from collections.abc import Iterable

from obuilder.engine.settings import Settings
from obuilder.plan.model import LayerAction, Plan, RunAction, Step
from obuilder.values import Key


def _sees_secrets(step: Step) -> bool:
    return isinstance(step.action, RunAction) and bool(step.action.secrets or step.action.ssh)


def _standing_on(plan: Plan, first: Iterable[Key]) -> set[Key]:
    """These steps, and all that need them."""
    found = set(first)
    for key, step in plan.steps.items():  # needs come first
        if not found.isdisjoint(step.needs):
            found.add(key)
    return found


def _stood_on(plan: Plan, first: Iterable[Key]) -> set[Key]:
    """These steps, and all that they need."""
    found = set(first)
    for key in reversed(plan.steps):
        if key in found:
            found.update(plan.steps[key].needs)
    return found


def may_take(plan: Plan, settings: Settings, place: str) -> set[Key]:
    """The steps whose results may come from a cache."""
    found = {key for key, step in plan.steps.items() if not isinstance(step.action, LayerAction)}
    if settings.cache(place).taken_with_secrets:
        return found
    secret = {key for key, step in plan.steps.items() if _sees_secrets(step)}
    return found - _standing_on(plan, secret) - _stood_on(plan, secret)


def to_send(plan: Plan, settings: Settings, place: str) -> set[Key]:
    """The steps whose results go to a cache."""
    found = {key for key, step in plan.steps.items() if not isinstance(step.action, LayerAction)}
    if settings.cache_mode == "min":
        found &= {plan.result}
    if settings.cache(place).taken_with_secrets:
        return found
    secret = {key for key, step in plan.steps.items() if _sees_secrets(step)}
    return found - _standing_on(plan, secret)
