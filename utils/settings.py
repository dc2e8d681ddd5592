"""The scripts' settings: read from ``config.py``, changed by files and flags, checked, written.

A script reads::

    parser = settings_parser(config, description="...")
    parser.add_argument("--resume", ...)
    settings, arguments = parse_settings(parser, config)
    settings.batch_size
"""

import argparse
import ast
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from datasets.files import write_text
from utils.kinds import KINDS, Kind, SettingsError

# Settings files of older runs have them; they have no effect.
FORMER = ("BAD_FILE_SHARE", "CAMERA_MOTION", "KMEANS", "NUM_SLOTS")


class MissingSetting(SettingsError, AttributeError):
    """A setting that ``config.py`` does not have."""


@dataclass(frozen=True)
class Line:
    """``NAME: kind = value  # comment``, as it stands in a file."""

    name: str  # empty for a line that is no assignment
    annotation: str | None  # the text of the kind
    source: str | None  # the text of the value; None if that is no plain literal
    heading: str  # the title of its group, with the words in brackets
    comment: str
    number: int

    @property
    def flag(self) -> str:
        """The command line's name for the setting."""
        return "--" + self.name.lower().replace("_", "-")

    def kind(self) -> Kind:
        """The kind that the line names. Its text is code, as all of ``config.py`` is."""
        try:
            kind = eval(self.annotation, {"__builtins__": {}}, KINDS)
            return replace(kind)  # fails for a word that still needs its (...)
        except Exception as error:
            raise SettingsError(
                f"config.py, line {self.number}: {self.name}: {self.annotation} is no kind of "
                "setting; utils/kinds.py has the kinds"
            ) from error


@dataclass(frozen=True)
class Settings:
    """Checked settings, read as lower-case attributes: ``settings.batch_size``.

    Made by ``load_settings``, ``parse_settings`` and ``read_settings_file``; can be pickled.

    Raises:
        SettingsError: values that are allowed alone but not together.
        MissingSetting: there is no setting of this name; the message has the nearest one.
    """

    _values: dict[str, Any]
    _defaults: dict[str, Any] = field(compare=False, repr=False)
    _lines: dict[str, Line] = field(compare=False, repr=False)

    def __post_init__(self) -> None:
        pairs = [("MIN_LEARNING_RATE", "LEARNING_RATE")]
        pairs += [("NUM_NEIGHBOURS", "NUM_CLUSTERS")] if self.knn_filtering else []
        for smaller, larger in pairs:
            least, most = getattr(self, smaller), getattr(self, larger)
            if least > most:
                raise SettingsError(
                    f"{smaller} = {least} is above {larger} = {most}: expected at most that; "
                    "change one of the two"
                )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pickle asks for such names before there are values
            raise AttributeError(name)
        name = name.upper()
        if name not in self._values:
            nearest = _nearest(name, self._values)
            raise MissingSetting(f"config.py has no setting {name}; the nearest is {nearest}")
        return self._values[name]

    def as_dict(self) -> dict[str, Any]:
        """The values by upper-case name, in the order of ``config.py``."""
        return dict(self._values)

    def defaults(self) -> "Settings":
        """The settings of ``config.py`` alone."""
        return self._with(self._defaults)

    def replace(self, **changes: Any) -> "Settings":
        """A copy with changes by lower-case name: ``settings.replace(batch_size=4)``.

        Raises:
            SettingsError: a name that does not exist, or a value that is not allowed.
        """
        checked = {}
        for name, value in changes.items():
            getattr(self, name)
            kind = self._lines[name.upper()].kind()
            checked[name.upper()] = kind.check(value, f"{name}={value!r}")
        return self._with(checked)

    def marked(self, *words: str) -> list[str]:
        """The names in the groups of ``config.py`` that have one of these words in brackets."""
        return [
            line.name
            for line in self._lines.values()
            if set(words) & set(line.heading.rstrip("]").rpartition("[")[2].split(", "))
        ]

    def _with(self, checked: dict[str, Any]) -> "Settings":
        return Settings(self._values | checked, self._defaults, self._lines)


def load_settings(config: ModuleType) -> Settings:
    """The settings of ``config.py``, given as the imported module.

    Raises:
        SettingsError: faults of the file; all of them, a line each.
    """
    file = Path(config.__file__)
    found = [line for line in _read_lines(file.read_text(encoding="utf-8-sig")) if line.name]
    lines = {line.name: line for line in found if line.annotation}
    values = _check_lines(found, lines, file.name, vars(config))
    return Settings(values, values, lines)


def read_settings_file(path: Path, settings: Settings) -> Settings:
    """``settings`` with the changes in a file: a recipe, or what ``write_settings`` wrote.

    Nothing in the file runs.

    Raises:
        SettingsError: the file cannot be read, or has faults; all of them, a line each.
    """
    return settings._with(_read_changes(path, settings))


def write_settings(settings: Settings, path: Path) -> None:
    """Write settings as a file like ``config.py``: same groups, order and comments.

    A value that is still the one of ``config.py`` keeps its spelling there (``1e-4``), so that a
    diff of the two files shows what was changed.
    """
    text = '"""The settings of one run, as used; python SCRIPT --config FILE takes them again."""\n'
    text += "\nfrom __future__ import annotations\n"
    heading = None
    for line in settings._lines.values():
        if line.heading != heading:
            heading = line.heading
            text += f"\n# {heading}\n"
        value = settings._values[line.name]
        changed = line.source is None or settings._defaults[line.name] != value
        comment = f"  # {line.comment}" if line.comment else ""
        text += f"{line.name}: {line.annotation} = "
        text += f"{repr(value) if changed else line.source}{comment}\n"
    write_text(path, text)


def settings_parser(config: ModuleType, description: str) -> argparse.ArgumentParser:
    """A parser with ``--config FILE`` and a flag for every setting, grouped as in ``config.py``.

    The script adds its own arguments. A fault of ``config.py`` ends the process with a message and
    status 2.
    """
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--flag value ...]",
        description=description,
        epilog="Every setting of config.py is a flag; lists take several values, None is none.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        nargs="+",
        action="extend",
        default=[],
        help="files of settings that go before config.py's, such as recipes/dpa.py or a run's "
        "settings.py; later files go before earlier ones",
    )
    try:
        settings = load_settings(config)
    except SettingsError as error:
        _refuse(parser, error)
    groups: dict[str, Any] = {}
    for line in settings._lines.values():
        kind, title = line.kind(), line.heading.partition(" [")[0]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        switch = kind.type is bool
        default = line.source or repr(settings._values[line.name])
        groups[title].add_argument(
            line.flag,
            # Upper-case, so that no argument of a script's own can be taken for a setting.
            dest=line.name,
            default=argparse.SUPPRESS,
            # A switch alone means true.
            nargs="+" if kind.several else "?" if switch else None,
            const="true" if switch else None,
            metavar=kind.metavar,
            help=f"{line.comment} (default: {default})".strip().replace("%", "%%"),
        )
    return parser


def parse_settings(
    parser: argparse.ArgumentParser, config: ModuleType, argv: Sequence[str] | None = None
) -> tuple[Settings, argparse.Namespace]:
    """The settings with the changes of ``--config FILE`` and of the flags; the other arguments.

    The latter have ``given`` and ``in_files``: the names of the settings that came as flags and
    from files. A fault in a file or a flag ends the process with a message and status 2.
    """
    settings = load_settings(config)
    arguments, unknown = parser.parse_known_args(argv)
    own = vars(arguments)
    flags = {name: own.pop(name) for name in settings._lines if name in own}
    try:
        if unknown:
            raise SettingsError(_unknown_argument(unknown[0], parser))
        changes: dict[str, Any] = {}
        for file in own.pop("config"):
            changes |= _read_changes(file, settings)
        own |= {"given": frozenset(flags), "in_files": frozenset(changes)}
        for name, given in flags.items():
            line = settings._lines[name]
            kind = line.kind()
            typed = " ".join(given) if kind.several else given
            changes[name] = kind.check(kind.parse(given), f"{line.flag} {typed or repr(typed)}")
        return settings._with(changes), arguments
    except SettingsError as error:
        _refuse(parser, error)


def _read_lines(text: str) -> Iterator[Line]:
    """The lines of a file but for its docstring and imports.

    A comment after an empty line is the title of a group.
    """
    rows = text.split("\n")
    heading, end = "Settings", 0
    for position, statement in enumerate(ast.parse(text).body):
        for above, row in zip(rows[end:], rows[end + 1 : statement.lineno - 1]):
            if row.startswith("#") and not above.strip():
                heading = row.removeprefix("#").strip()
        end = statement.end_lineno
        name, kind, value = "", None, None
        match statement:
            case ast.Expr(ast.Constant(str())) if position == 0:
                continue
            case ast.ImportFrom(module="__future__"):
                continue
            case ast.Assign(targets=[ast.Name(name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(name), annotation=kind, value=value):
                kind = ast.get_source_segment(text, kind)
        comment = rows[end - 1].encode()[statement.end_col_offset :].decode()
        comment = comment.strip().removeprefix("#").strip()
        source = _source_of_literal(text, value)
        yield Line(name, kind, source, heading, comment, statement.lineno)


def _read_changes(path: Path, settings: Settings) -> dict[str, Any]:
    """The checked values of a settings file by upper-case name."""
    try:
        found = list(_read_lines(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise SettingsError(f"{path}: cannot read this settings file: {error.strerror}") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SettingsError(f"{path}: not a settings file in Python's syntax: {error}") from error
    found = [line for line in found if line.name not in FORMER]
    values = {line.name: ast.literal_eval(line.source) for line in found if line.source}
    return _check_lines(found, settings._lines, str(path), values)


def _check_lines(
    found: Sequence[Line], lines: Mapping[str, Line], file: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """The checked values of a file by name.

    Raises:
        SettingsError: with all faults of the file.
    """
    checked, problems, numbers = {}, [], {}
    for line in found:
        name, where = line.name, f"{file}, line {line.number}"
        try:
            if name not in values:
                raise SettingsError(
                    f"{where}: expected NAME = value with a plain value (number, text, True, "
                    "False, None or a list)"
                )
            if numbers.setdefault(name, line.number) != line.number:
                raise SettingsError(f"{where}: {name} is set again after line {numbers[name]}")
            if name not in lines:
                raise SettingsError(
                    f"{where}: no setting is named {name}; the nearest is "
                    f"{_nearest(name.upper(), lines)} (config.py names them: NAME: kind = value)"
                )
            assigned = f"{where}: {name} = {values[name]!r}"
            checked[name] = lines[name].kind().check(values[name], assigned)
        except SettingsError as error:
            problems.append(str(error))
    if problems:
        raise SettingsError("\n".join(problems))
    return checked


def _source_of_literal(text: str, node: ast.expr | None) -> str | None:
    """The text of a value in a file, in one line; None if it is no plain literal."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        return None
    source = ast.get_source_segment(text, node)
    return repr(value) if "\n" in source else source


def _nearest(name: str, names: Iterable[str]) -> str:
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def _unknown_argument(argument: str, parser: argparse.ArgumentParser) -> str:
    if not argument.startswith("-"):
        return f"{argument!r}: expected a flag before it"
    flag = argument.split("=")[0]
    return f"{flag}: no such flag; the nearest is {_nearest(flag, parser._option_string_actions)}"


def _refuse(parser: argparse.ArgumentParser, error: SettingsError) -> NoReturn:
    parser.exit(2, f"{parser.prog}: {error}\n{parser.prog} --help lists every setting.\n")
