"""The scripts' settings: read from ``config.py``, changed by flags, checked, written to a file.

``RULES`` says for every setting what is allowed. A script reads::

    parser = settings_parser(config, description="...")
    parser.add_argument("--resume", ...)
    settings, arguments = parse_settings(parser, config)
    settings.batch_size
"""

import argparse
import ast
import difflib
import io
import sys
import tokenize
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from datasets.files import write_text
from utils.evaluation.protocols import PROTOCOLS


class SettingsError(ValueError):
    """A setting that is misspelt, missing, of the wrong type or out of its range."""


@dataclass(frozen=True)
class Rule:
    """What one setting may be.

    ``expected`` says it in words and ``accepts`` in code. ``parse`` turns a flag's text into a
    value; text that it cannot read comes back as it is, for ``accepts`` to refuse. ``convert``
    brings an accepted value into the one form that the code uses. ``several`` is for lists, whose
    flag takes one or more texts.
    """

    expected: str
    metavar: str
    accepts: Callable[[Any], bool]
    parse: Callable[[Any], Any]
    convert: Callable[[Any], Any] = lambda value: value
    several: bool = False


def _parse_with(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return read(text)
        except ValueError:
            return text

    return parse


def _whole(lowest: int, highest: int = 1_000_000, step: int = 1) -> Rule:
    multiple = f", a multiple of {step}" if step > 1 else ""
    return Rule(
        f"a whole number from {lowest} to {highest}{multiple}",
        "N",
        # bool is a kind of int to Python, but BATCH_SIZE = True is a mistake.
        lambda value: type(value) is int and lowest <= value <= highest and value % step == 0,
        _parse_with(int),
    )


def _number(expected: str, allowed: Callable[[float], bool]) -> Rule:
    return Rule(
        f"a number{expected}",
        "X",
        # The comparison also refuses infinity and NaN, which a settings file could not hold.
        lambda value: (
            type(value) in (int, float) and abs(value) <= sys.float_info.max and allowed(value)
        ),
        _parse_with(float),
        float,
    )


def _optional(rule: Rule) -> Rule:
    return replace(
        rule,
        expected=f"{rule.expected}, or None",
        accepts=lambda value: value is None or rule.accepts(value),
        # The one text of a value, or those of a list.
        parse=lambda text: None if "".join(text).lower() == "none" else rule.parse(text),
        convert=lambda value: None if value is None else rule.convert(value),
    )


def _list_of(rule: Rule, example: str) -> Rule:
    def accepts(values: Any) -> bool:
        # In this order, since what the rule refuses may have no place in a set.
        return (
            isinstance(values, list | tuple)
            and all(map(rule.accepts, values))
            and 0 < len(values) == len(set(values))
        )

    return Rule(
        f"a list, {example}, of different values, each {rule.expected}",
        rule.metavar,
        accepts,
        lambda texts: [rule.parse(text) for text in texts],
        lambda values: [rule.convert(value) for value in values],
        several=True,
    )


def _choice(*names: str) -> Rule:
    return Rule(
        f"one of {', '.join(map(repr, names))}",
        "NAME",
        lambda value: isinstance(value, str) and value in names,
        lambda text: text,
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_gpu_list(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    if not value.strip():
        return True
    indices = [index.strip() for index in value.split(",")]
    # isdecimal() alone would also take the digits of other scripts.
    if not all(index.isascii() and index.isdecimal() for index in indices):
        return False
    return len(indices) == len(set(map(int, indices)))


_SWITCHES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

_positive_int = _whole(1)
_non_negative_int = _whole(0)
_positive_float = _number(" above 0", lambda value: value > 0)
_non_negative_float = _number(", 0 or above", lambda value: value >= 0)
_share = _number(" from 0 to 1", lambda value: 0 <= value <= 1)
_degrees = _number(" from 0 to 180", lambda value: 0 <= value <= 180)
_image_size = _whole(32, 8192, step=32)
_scale = _number(" above 0, at most 4", lambda value: 0 < value <= 4)
_adam_decay = _number(" from 0 to below 1", lambda value: 0 <= value < 1)
_text = Rule("text in quotes, not empty", "TEXT", _is_text, lambda text: text)
_path = replace(_text, expected="a path in quotes, not empty", metavar="PATH")
_flag = Rule(
    "True or False",
    "true|false",
    lambda value: isinstance(value, bool),
    lambda text: _SWITCHES.get(text.lower(), text),
)
_gpu_list = Rule(
    'different GPU indices in quotes, such as "0" or "0,1", or "" for the CPU',
    "TEXT",
    _is_gpu_list,
    lambda text: text,
    lambda value: "".join(value.split()),
)

RULES: dict[str, Rule] = {
    "DATA_ROOT": _path,
    "PRETRAIN_SET": _text,
    "TRAIN_SETS": _list_of(_text, 'such as ["DAVIS_train"]'),
    "BALANCE_SETS": _flag,
    "VAL_SET": _text,
    "IMAGE_SIZE": _image_size,
    "IMAGE_SIZES": _optional(_list_of(_image_size, "such as [384, 416, 448, 480, 512]")),
    "WORKERS": _non_negative_int,
    "FLIP_PROBABILITY": _share,
    "CROP_SCALE": _number(" above 0, at most 1", lambda value: 0 < value <= 1),
    "ROTATION_PROBABILITY": _share,
    "ROTATION_DEGREES": _degrees,
    "BRIGHTNESS": _share,
    "CONTRAST": _share,
    "SATURATION": _share,
    "SHARPNESS": _non_negative_float,
    "RECOLOUR_FLOW": _flag,
    "CAMERA_MOTION": _non_negative_float,
    "FLOW_TURN": _degrees,
    "PRETRAIN_MOTION": _choice("none", "simulated"),
    "SIMULATED_CAMERA": _share,
    "SIMULATED_OBJECT": _share,
    "SIMULATED_PARALLAX": _share,
    "SIMULATED_DEFORMATION": _share,
    "SIMULATED_FLOW_NOISE": _share,
    "SIMULATED_FLOW_OUTLIERS": _non_negative_float,
    "SIMULATED_FLOW_BLUR": _share,
    "SIMULATED_SPAN": _number(" from 1 to 100", lambda value: 1 <= value <= 100),
    "MODEL": _text,
    "BACKBONE": _text,
    "PRETRAINED_BACKBONE": _flag,
    "BACKBONE_WEIGHTS": _optional(_path),
    "CHANNELS": _whole(4, step=4),
    "NUM_CLUSTERS": _positive_int,
    "NUM_REFERENCES": _positive_int,
    "NUM_NEIGHBOURS": _positive_int,
    "NUM_ITERATIONS": _non_negative_int,
    "DECODER_IMAGE": _flag,
    "REFERENCE_GRADIENT": _flag,
    "GUIDED_SLOTS": _flag,
    "KNN_FILTERING": _flag,
    "SLOT_ATTENTION": _flag,
    "AGGREGATION_TRANSFORMER": _flag,
    "INTER_MODALITY_ATTENTION": _flag,
    "INTER_FRAME_ATTENTION": _flag,
    "GRAPH_NEIGHBOURS": _positive_int,
    "GRAPH_ROUNDS": _non_negative_int,
    "LOSS": _optional(_choice("iou+bce", "iou", "bce")),
    "SIGMA": _non_negative_float,
    "SUPERVISE_SLOT_MAPS": _flag,
    "STAGE1_CHECKPOINT": _optional(_path),
    "EPOCHS": _positive_int,
    "BATCH_SIZE": _positive_int,
    "ACCUMULATION_STEPS": _positive_int,
    "LEARNING_RATE": _positive_float,
    "MIN_LEARNING_RATE": _non_negative_float,
    "ADAM_BETA1": _adam_decay,
    "ADAM_BETA2": _adam_decay,
    "ADAM_EPSILON": _positive_float,
    "CLIP_GRADIENT": _optional(_positive_float),
    "EMA_DECAY": _optional(_number(" above 0, below 1", lambda value: 0 < value < 1)),
    "SEED": _whole(0, 2**32 - 1),
    "GPU": _gpu_list,
    "MIXED_PRECISION": _flag,
    "COMPILE": _flag,
    "OUTPUT_DIR": _path,
    "RUN_NAME": _optional(_text),
    "CHECKPOINT_MINUTES": _positive_float,
    "MAX_BAD_STEPS": _non_negative_int,
    "BAD_FILE_SHARE": _share,
    "PRETRAIN_VAL_SHARE": _number(" above 0, below 1", lambda value: 0 < value < 1),
    "VALIDATE_EVERY": _positive_int,
    "VAL_FRAME_STEP": _positive_int,
    "EVAL_BATCH_SIZE": _positive_int,
    "THRESHOLD": _share,
    "STRETCH_MASKS": _flag,
    "PANEL_STEP": _non_negative_int,
    "PROTOCOL": _optional(_choice(*PROTOCOLS)),
    "TTA_SCALES": _list_of(_scale, "such as [0.75, 1.0]"),
    "TTA_FLIP": _flag,
    "FLOW_ESTIMATOR": _choice("raft", "dis"),
    "FLOW_WEIGHTS": _optional(_path),
    "REMOVE_CAMERA_MOTION": _flag,
    "FRAME_RATE": _number(" from 0.1 to 1000", lambda value: 0.1 <= value <= 1000),
}


_RETIRED = ("KMEANS", "NUM_SLOTS")  # in the files of older runs; they no longer change anything


@dataclass(frozen=True)
class Line:
    """One setting as it stands in its file: its group, comment, line number and the value's text.

    ``source`` is None where the value is not a plain literal.
    """

    name: str
    group: str
    comment: str
    number: int
    source: str | None


class Settings:
    """Checked settings as lower-case attributes, which cannot be set: ``settings.batch_size``.

    Made by ``load_settings``, ``parse_settings`` and ``read_settings_file``; can be pickled. A name
    that does not exist raises AttributeError and names the nearest.
    """

    def __init__(self, values: Mapping[str, Any], lines: Sequence[Line]) -> None:
        """``values`` by upper-case name, each already checked; ``lines`` of the file they stand in.

        Raises:
            SettingsError: values that are allowed alone but not together.
        """
        _check_together(values)
        self.__dict__.update({line.name.lower(): values[line.name] for line in lines})
        self.__dict__["_lines"] = tuple(lines)

    def __getattr__(self, name: str) -> NoReturn:
        message = f"no such setting: {name}"
        if not name.startswith("_"):
            message += f"; the nearest is {_nearest(name.upper(), RULES).lower()}"
        raise AttributeError(message)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"settings are fixed; use settings.replace({name}=...) for a copy")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self.as_dict() == other.as_dict()

    __hash__ = None

    def __repr__(self) -> str:
        return f"Settings({self.as_dict()})"

    def as_dict(self) -> dict[str, Any]:
        """The values by upper-case name, in the order of the file."""
        return {line.name: getattr(self, line.name.lower()) for line in self._lines}

    def replace(self, **changes: Any) -> "Settings":
        """A copy with changes by lower-case name: ``settings.replace(batch_size=4)``.

        Raises:
            AttributeError: a name that does not exist.
            SettingsError: a value that is not allowed.
        """
        values = self.as_dict()
        for name, value in changes.items():
            getattr(self, name)
            values[name.upper()] = _checked(name.upper(), value, f"{name}={value!r}")
        return Settings(values, self._lines)


def load_settings(config: ModuleType) -> Settings:
    """The settings of ``config.py``, given as the imported module.

    Raises:
        SettingsError: names that do not exist, are missing or are set twice, and values that are
            not allowed; all of them, a line each.
    """
    lines = _read_lines(_text_of(Path(config.__file__)))
    values = {line.name: getattr(config, line.name, None) for line in lines}
    return _settings_of_file(values, lines, Path(config.__file__).name)


def read_settings_file(path: Path) -> Settings:
    """The settings of a file that ``write_settings`` wrote, or of one like it; nothing in it runs.

    Raises:
        SettingsError: as for ``load_settings``; also a file that cannot be read or that holds
            anything but ``NAME = value`` lines with plain values.
    """
    try:
        text = _text_of(path)
        lines = _read_lines(text)
        statements = ast.parse(text).body
    except OSError as error:
        raise SettingsError(f"{path}: cannot read this settings file: {error.strerror}") from error
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        raise SettingsError(f"{path}: not a settings file in Python's syntax: {error}") from error
    except (RecursionError, MemoryError) as error:  # the one or the other, as Python's version is
        raise SettingsError(f"{path}: not a settings file: too deeply nested") from error
    values = {}
    for position, statement in enumerate(statements):
        match statement:
            case ast.Expr(value=ast.Constant(value=str())) if position == 0:
                continue
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                literal = _source_of_literal(text, value)
            case _:
                literal = None
        if literal is None:
            raise SettingsError(
                f"{path}, line {statement.lineno}: expected NAME = value with a plain value "
                "(number, text, True, False, None or a list)"
            )
        values[name] = ast.literal_eval(literal)
    return _settings_of_file(values, lines, str(path))


def write_settings(settings: Settings, path: Path) -> None:
    """Write settings as a file like ``config.py``: same groups, order and comments.

    A value that is still the file's keeps its spelling there (``1e-4``), so that a diff with
    ``config.py`` shows what was changed. The file appears whole or not at all; its folder is made.
    """
    text = '"""The settings of one run, as used; python SCRIPT --config FILE takes them again."""\n'
    group = None
    for line in settings._lines:
        if line.group != group:
            group = line.group
            text += f"\n# {group}\n"
        value = getattr(settings, line.name.lower())
        unchanged = line.source is not None and ast.literal_eval(line.source) == value
        comment = f"  # {line.comment}" if line.comment else ""
        text += f"{line.name} = {line.source if unchanged else repr(value)}{comment}\n"
    write_text(path, text)


def settings_parser(config: ModuleType, description: str) -> argparse.ArgumentParser:
    """A parser with ``--config FILE`` and a flag for every setting of ``config.py``.

    Flags are grouped as in the file; a flag's help is the file's comment and value. The script adds
    its own arguments. Faults of ``config.py`` are left to ``parse_settings``, which reports them.
    """
    file = Path(config.__file__)
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--flag value ...]",
        description=description,
        epilog=f"Every setting of {file.name} is a flag; lists take several values, None is none.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"take the settings from this file, such as a run's, instead of {file.name}",
    )
    groups: dict[str, Any] = {}
    for line in _read_lines(_text_of(file)):
        flag = _flag_of(line.name)
        if line.name not in RULES or flag in parser._option_string_actions:
            continue
        if line.group not in groups:
            groups[line.group] = parser.add_argument_group(line.group)
        default = _as_typed(getattr(config, line.name, None))
        groups[line.group].add_argument(
            flag,
            # Upper-case, so that no argument of a script's own can be taken for a setting.
            dest=line.name,
            default=argparse.SUPPRESS,
            # A switch alone means true.
            nargs="+" if RULES[line.name].several else "?" if RULES[line.name] is _flag else None,
            const="true" if RULES[line.name] is _flag else None,
            metavar=RULES[line.name].metavar,
            help=f"{line.comment} (default: {default})".strip().replace("%", "%%"),
        )
    return parser


def parse_settings(
    parser: argparse.ArgumentParser, config: ModuleType, argv: Sequence[str] | None = None
) -> tuple[Settings, argparse.Namespace]:
    """The settings of ``config.py`` (or of ``--config FILE``) with the flags' changes.

    Also returns the script's own arguments, with ``config`` and with ``given``, the names of the
    settings that came as flags. ``argv`` is the command line by default. A fault in the file or in
    a flag ends the process with a message on stderr and status 2.
    """
    try:
        settings = load_settings(config)
        typed = sys.argv[1:] if argv is None else argv
        _refuse_empty(typed)
        arguments, unknown = parser.parse_known_args(typed)
        if unknown:
            raise SettingsError(_unknown_argument(unknown[0], parser))
        own = vars(arguments)
        flags = {name: own.pop(name) for name in RULES if name in own}
        arguments.given = frozenset(flags)
        file = own["config"]
        if file is not None:
            settings = read_settings_file(file)
        values = settings.as_dict()
        for name, given in flags.items():
            typed = " ".join(given) if isinstance(given, list) else given
            values[name] = _checked(
                name, RULES[name].parse(given), f"{_flag_of(name)} {typed or repr(typed)}"
            )
        return Settings(values, settings._lines), arguments
    except SettingsError as error:
        parser.exit(2, f"{parser.prog}: {error}\n{parser.prog} --help lists every setting.\n")


def _refuse_empty(argv: Sequence[str]) -> None:
    """Raise SettingsError if an argument that is no setting is empty; a path would be "."."""
    flag = ""
    for text in argv:
        if text.startswith("--"):
            flag = text.partition("=")[0]
        if text in ("", f"{flag}=") and flag[2:].upper().replace("-", "_") not in RULES:
            raise SettingsError(f'{flag} "": expected a name or a path, not an empty text')


def _checked(name: str, value: Any, found: str) -> Any:
    """The value as the code uses it; ``found`` says in errors what was found where."""
    rule = RULES[name]
    if not rule.accepts(value):
        raise SettingsError(f"{found}: expected {rule.expected}")
    return rule.convert(value)


def _check_together(values: Mapping[str, Any]) -> None:
    for smaller, larger in (
        ("MIN_LEARNING_RATE", "LEARNING_RATE"),
        ("NUM_NEIGHBOURS", "NUM_CLUSTERS"),
    ):
        if smaller == "NUM_NEIGHBOURS" and not values["KNN_FILTERING"]:
            continue
        if values[smaller] > values[larger]:
            raise SettingsError(
                f"{smaller} = {values[smaller]} is above {larger} = {values[larger]}: "
                f"expected at most that; change one of the two"
            )


def _settings_of_file(values: Mapping[str, Any], lines: Sequence[Line], file: str) -> Settings:
    """Check names and values of a file, and report every fault in it at once."""
    lines = [line for line in lines if line.name not in _RETIRED]
    problems = []
    suggested = set()
    seen: dict[str, int] = {}
    checked = {}
    for line in lines:
        where = f"{file}, line {line.number}"
        found = f"{where}: {line.name} = {values[line.name]!r}"
        if line.name in seen:
            problems.append(f"{where}: {line.name} is set again after line {seen[line.name]}")
        elif line.name not in RULES:
            nearest = _nearest(line.name.upper(), RULES)
            suggested.add(nearest)
            problems.append(f"{where}: no setting is named {line.name}; the nearest is {nearest}")
        else:
            try:
                checked[line.name] = _checked(line.name, values[line.name], found)
            except SettingsError as error:
                problems.append(str(error))
        seen[line.name] = line.number
    for name, rule in RULES.items():
        if name not in seen and name not in suggested:
            problems.append(f"{file}: {name} is missing; add it, set to {rule.expected}")
    if problems:
        raise SettingsError("\n".join(problems))
    return Settings(checked, lines)


def _text_of(path: Path) -> str:
    """A settings file's text, without the mark that some editors put at the beginning."""
    return path.read_text(encoding="utf-8-sig")


def _read_lines(text: str) -> list[Line]:
    """The settings of a file in order. A comment line after an empty line is a group's heading."""
    statements = ast.parse(text).body
    rows = text.split("\n")
    comments: dict[int, str] = {}
    headings: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            comment = token.string.lstrip("# ").rstrip()
            if column > 0:
                comments[row] = comment
            elif row == 1 or not rows[row - 2].strip():
                headings[row] = comment
    lines = []
    for statement in statements:
        if not isinstance(statement, ast.Assign | ast.AnnAssign):
            continue
        above = [row for row in headings if row < statement.lineno]
        targets = getattr(statement, "targets", None) or [statement.target]
        lines += [
            Line(
                name=node.id,
                group=headings[max(above)] if above else "Settings",
                comment=comments.get(statement.end_lineno, ""),
                number=statement.lineno,
                source=_source_of_literal(text, statement.value) if len(targets) == 1 else None,
            )
            for target in targets
            for node in ast.walk(target)
            if isinstance(node, ast.Name)
        ]
    return lines


def _source_of_literal(text: str, node: ast.expr | None) -> str | None:
    """The text of a value in a file, or None if it is not a plain literal."""
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
    return ast.get_source_segment(text, node)


def _nearest(name: str, names: Iterable[str]) -> str:
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def _flag_of(name: str) -> str:
    return "--" + name.lower().replace("_", "-")


def _as_typed(value: Any) -> str:
    """A value as one would type it after its flag."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value) if value != "" else '""'


def _unknown_argument(argument: str, parser: argparse.ArgumentParser) -> str:
    if not argument.startswith("-"):
        return f"{argument!r}: expected a flag before it"
    flag = argument.split("=")[0]
    return f"{flag}: no such flag; the nearest is {_nearest(flag, parser._option_string_actions)}"
