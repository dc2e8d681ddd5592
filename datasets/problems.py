"""Problems of data on disk, and the message about all of them."""

from collections.abc import Mapping
from pathlib import Path

from errors import UserError

Kind = tuple[str, str]  # a kind of problem, and advice
Problems = dict[Kind, list[str]]  # the files or folders concerned, by kind of problem

_LISTED = 10  # entries of a kind that a message names; the rest are counted


class DatasetError(UserError):
    """Data on disk cannot be used; the message names the fault, the place and the remedy."""


def add_problems(problems: Problems, kind: Kind, *items: str | Path) -> None:
    """Note files or folders that have this kind of problem."""
    for item in items:
        problems.setdefault(kind, []).append(str(item))


def format_problems(where: str | Path, problems: Mapping[Kind, list[str]]) -> str:
    """The message about all problems at one place: each kind with its advice and ten entries."""
    total = sum(len(items) for items in problems.values())
    lines = [f"{total} {'problem' if total == 1 else 'problems'} in {where}:"]
    for (kind, advice), items in problems.items():
        lines.append(f"  {len(items)} x {kind} ({advice})")
        lines += [f"    {item}" for item in items[:_LISTED]]
        if len(items) > _LISTED:
            lines.append(f"    ... and {len(items) - _LISTED} more")
    return "\n".join(lines)
