"""A plan for people: lines of text, or a Mermaid graph."""

from collections.abc import Container

from obuilder.plan.model import Plan, RunAction
from obuilder.spec.encode import one_line
from obuilder.values import Key


def text(plan: Plan, cached: Container[Key]) -> list[str]:
    """A line for each step: its mark, key, stage and heading."""
    lines = []
    for step in plan.steps.values():
        mark = "cached" if step.key in cached else "to run"
        stage = f"[{step.stage}] " if step.stage else ""
        lines.append(f"{mark}  {step.key[:12]}  {stage}{one_line(step.heading)}")
    return lines


def mermaid(plan: Plan, cached: Container[Key]) -> list[str]:
    """The graph in Mermaid's flowchart syntax; cached steps have the class `cached`."""
    lines = ["flowchart TD"]
    for step in plan.steps.values():
        heading = one_line(step.heading)
        label = "".join(_safe(character) for character in heading)
        mark = ":::cached" if step.key in cached else ""
        lines.append(f'    s{step.key[:12]}["{label}"]{mark}')
    for step in plan.steps.values():
        if step.base is not None:
            lines.append(f"    s{step.base[:12]} --> s{step.key[:12]}")
        word = "look" if isinstance(step.action, RunAction) else "copy"
        lines.extend(
            f"    s{need[:12]} -. {word} .-> s{step.key[:12]}"
            for need in step.needs
            if need != step.base
        )
    lines.append("    classDef cached stroke-dasharray: 4 4")
    return lines


def _safe(character: str) -> str:
    plain = character.isascii() and (character.isalnum() or character in " -_./:()=,+@")
    return character if plain else f"#{ord(character)};"
