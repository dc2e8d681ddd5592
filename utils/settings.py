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
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

from datasets.files import write_text
from utils.kinds import KINDS, Kind, SettingsError


@dataclass(frozen=True)
class Line:
    """``NAME: kind = value  # comment``, as it stands in a file."""

    name: str  # empty for a line that is no assignment
    annotation: str | None  # the text of the kind
    plain: bool  # whether the value is a plain literal
    value: Any  # None if it is not
    heading: str  # the title of its group, with the words in brackets
    comment: str
    number: int

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
        SettingsError: values that are allowed alone but not together; an attribute that is no
            setting.
    """

    _values: dict[str, Any]
    _defaults: dict[str, Any] = field(compare=False, repr=False)
    _lines: dict[str, Line] = field(compare=False, repr=False)

    def __post_init__(self) -> None:
        least, first = self.min_learning_rate, self.learning_rate
        if least > first:
            raise SettingsError(
                f"MIN_LEARNING_RATE = {least} is above LEARNING_RATE = {first}; change one of them"
            )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pickle asks for such names before there are values
            raise AttributeError(name)
        name = name.upper()
        if name not in self._values:
            nearest = _nearest(name, self._values)
            raise SettingsError(f"config.py has no setting {name}; the nearest is {nearest}")
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

    def differences(self, there: "Settings", names: Iterable[str]) -> str:
        """Those of the upper-case ``names`` whose values differ, with both values; "" if none."""
        pairs = ((name, there._values[name], self._values[name]) for name in sorted(names))
        return ", ".join(
            f"{name} is {other!r} there, {own!r} here" for name, other, own in pairs if other != own
        )

    def marked(self, *words: str) -> list[str]:
        """The names in the groups of ``config.py`` that have one of these words in brackets."""
        return [
            line.name
            for line in self._lines.values()
            if set(words) & set(line.heading.rstrip("]").rpartition("[")[2].split(", "))
        ]

    def paths(self) -> list[str]:
        """The names of the settings that are paths of this machine."""
        return [line.name for line in self._lines.values() if line.kind().metavar == "PATH"]

    def _with(self, checked: dict[str, Any]) -> "Settings":
        return Settings(self._values | checked, self._defaults, self._lines)


def load_settings(config: ModuleType | SimpleNamespace) -> Settings:
    """The settings of ``config.py``, given as the imported module, or as its names.

    Raises:
        SettingsError: faults of the file; all of them, a line each.
    """
    file = Path(config.__file__)
    found = [line for line in _read_lines(file.read_text(encoding="utf-8-sig")) if line.name]
    lines = {line.name: line for line in found if line.annotation}
    checked = _check_lines(found, lines, file.name, vars(config))
    return Settings(checked, checked, lines)


def read_settings_file(path: Path, settings: Settings) -> Settings:
    """``settings`` with the changes in a file: a recipe, or what ``write_settings`` wrote.

    Nothing in the file runs.

    Raises:
        SettingsError: the file cannot be read, or has faults; all of them, a line each.
    """
    return settings._with(_read_changes(path, settings))


def write_settings(settings: Settings, path: Path) -> None:
    """Write settings as a file with the groups, the order and the comments of ``config.py``."""
    text = '"""The settings of one run, as used; python SCRIPT --config FILE takes them again."""\n'
    heading = None
    for line in settings._lines.values():
        if line.heading != heading:
            heading = line.heading
            text += f"\n# {heading}\n"
        comment = f"  # {line.comment}" if line.comment else ""
        text += f"{line.name} = {settings._values[line.name]!r}{comment}\n"
    write_text(path, text)


def settings_parser(
    config: ModuleType,
    description: str,
    listed: Collection[str] = (),
    unlisted: Collection[str] = (),
) -> argparse.ArgumentParser:
    """A parser with ``--config FILE`` and a flag for every setting, grouped as in ``config.py``.

    The script adds its own arguments. A fault of ``config.py`` ends the process with a message and
    status 2. ``--help`` has all settings, or those in groups with one of the words ``listed``
    without the names ``unlisted``.
    """
    others = "; python train.py --help has the other settings" if listed else ""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--flag value ...]",
        description=description,
        epilog=f"Lists take several values; write none for None{others}.",
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
        help="settings, as recipes/dpa.py or a run's settings.py; the last file counts",
    )
    try:
        settings = load_settings(config)
    except SettingsError as error:
        _refuse(parser, error)
    groups: dict[str, Any] = {}
    shown = set(settings.marked(*listed) if listed else settings._lines) - set(unlisted)
    for line in settings._lines.values():
        kind, title = line.kind(), line.heading.partition(" [")[0]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        switch = kind.type is bool
        default = f"(default: {settings._values[line.name]!r})"
        text = f"{line.comment} {default}".strip().replace("%", "%%")
        groups[title].add_argument(
            flag_name(line.name),
            # Upper-case, so that no argument of a script's own can be taken for a setting.
            dest=line.name,
            default=argparse.SUPPRESS,
            # A switch alone means true.
            nargs="+" if kind.several else "?" if switch else None,
            const="true" if switch else None,
            metavar=kind.metavar,
            help=text if line.name in shown else argparse.SUPPRESS,
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
    try:
        _check_flags(sys.argv[1:] if argv is None else argv, parser._option_string_actions)
        arguments = parser.parse_args(argv)
        own = vars(arguments)
        flags = {name: own.pop(name) for name in settings._lines if name in own}
        changes: dict[str, Any] = {}
        for file in own.pop("config"):
            changes |= _read_changes(file, settings)
        own |= {"given": frozenset(flags), "in_files": frozenset(changes)}
        for name, given in flags.items():
            line = settings._lines[name]
            kind = line.kind()
            typed = " ".join(given) if kind.several else given
            changes[name] = kind.check(
                kind.parse(given), f"{flag_name(name)} {typed or repr(typed)}"
            )
        return settings._with(changes), arguments
    except SettingsError as error:
        _refuse(parser, error)


def flag_name(setting: str) -> str:
    """The command line's name of a setting."""
    return "--" + setting.lower().replace("_", "-")


def positive(text: str) -> int:
    """The whole number above 0 of a flag's text, for ``add_argument(type=positive)``."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number above 0")
    return int(text)


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
        try:
            plain, value = True, ast.literal_eval(value)
        except (ValueError, TypeError, RecursionError):
            plain, value = False, None
        yield Line(name, kind, plain, value, heading, comment, statement.lineno)


def _read_changes(path: Path, settings: Settings) -> dict[str, Any]:
    """The checked values of a settings file by upper-case name."""
    try:
        found = list(_read_lines(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise SettingsError(f"{path}: cannot read this settings file: {error.strerror}") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SettingsError(f"{path}: not a settings file in Python's syntax: {error}") from error
    values = {line.name: line.value for line in found if line.plain}
    return _check_lines(found, settings._lines, str(path), values)


def _check_lines(
    found: Sequence[Line], lines: Mapping[str, Line], file: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """The checked values of a file by name.

    Raises:
        SettingsError: with all faults of the file.
    """
    checked, problems = {}, []
    for line in found:
        name, where = line.name, f"{file}, line {line.number}"
        try:
            if name not in values:
                raise SettingsError(
                    f"{where}: expected NAME = value with a plain value (number, text, True, "
                    "False, None or a list)"
                )
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


def _nearest(name: str, names: Iterable[str]) -> str:
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def _check_flags(argv: Sequence[str], known: Collection[str]) -> None:
    """Refuse a misspelt flag, before argparse says that the right one is missing."""
    for flag in (word.split("=")[0] for word in argv if word.startswith("--")):
        if flag not in known:
            raise SettingsError(f"{flag}: no such flag; the nearest is {_nearest(flag, known)}")


def _refuse(parser: argparse.ArgumentParser, error: SettingsError) -> NoReturn:
    parser.exit(2, f"{parser.prog}: {error}\n{parser.prog} --help lists the flags.\n")
