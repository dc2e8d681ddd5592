"""Settings: config.py, flags, recipes, checks, and the file that a run leaves behind."""

import importlib.util
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import config
from utils.settings import (
    SettingsError,
    load_settings,
    parse_settings,
    read_settings_file,
    settings_parser,
    write_settings,
)

ROOT = Path(config.__file__).parent
SOURCE = Path(config.__file__).read_text(encoding="utf-8")
DEFAULTS = load_settings(config)


def import_file(path):
    """A settings file as a module, whatever its folder."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def edited(tmp_path):
    """Make a config.py in which a setting's line is replaced, and return it as a module."""

    def edit(name, line):
        text, count = re.subn(rf"^{name}: .*$", lambda _: line, SOURCE, flags=re.MULTILINE)
        assert count == 1
        path = tmp_path / "config.py"
        path.write_text(text, encoding="utf-8")
        return import_file(path)

    return edit


def line_number(name):
    """The line of config.py that sets this name."""
    lines = SOURCE.split("\n")
    return next(i for i, line in enumerate(lines, 1) if line.startswith(f"{name}:"))


def parse(*argv):
    """The settings that a command line gives."""
    return parse_settings(settings_parser(config, "A script."), config, argv)[0]


def refused(capsys, *argv):
    """What a refused command line prints on stderr."""
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


# config.py


def test_settings_are_the_values_of_config():
    """Every value, in the order of the file."""
    names = [name for name in vars(config) if name.isupper()]
    assert DEFAULTS.as_dict() == {name: getattr(config, name) for name in names}
    assert list(DEFAULTS.as_dict()) == names
    assert DEFAULTS.batch_size == config.BATCH_SIZE


def test_the_code_reads_every_setting_and_no_other():
    files = [path for path in ROOT.glob("*.py") if path.stem != "config"]
    files += [
        path for room in ("datasets", "models", "utils") for path in ROOT.glob(f"{room}/**/*.py")
    ]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    names = {name.lower() for name in DEFAULTS.as_dict()}
    assert set(re.findall(r"\bsettings\.([a-z]\w*)\b(?!\()", code)) - names <= {"py"}
    words = {word.lower() for word in re.findall(r"\w+", code)}
    assert names <= words


GROUPS = {
    "resume": "CHECKPOINT_MINUTES CLIP_GRADIENT COMPILE DATA_ROOT EPOCHS GPU "
    "EVAL_BATCH_SIZE LEARNING_RATE MAX_BAD_STEPS MIN_LEARNING_RATE MIXED_PRECISION VALIDATE_EVERY "
    "VAL_FRAME_STEP WORKERS",
    "test": "IMAGE_SIZE IMAGE_WIDTH NUM_REFERENCES NUM_ITERATIONS RECOLOUR_FLOW",
    "masks": "THRESHOLD STRETCH_MASKS MIXED_PRECISION COMPILE",
    "tta": "TTA_SCALES TTA_FLIP",
    "machine": "GPU WORKERS EVAL_BATCH_SIZE",
    "set": "DATA_ROOT VAL_SET PROTOCOL FOREGROUND",
    "panels": "PANEL_STEP SAVE",
    "objects": "MAX_OBJECTS KEY_FRAME_STEP KEY_FRAME_TAIL MERGE_DISTANCE SOFT_MASKS DISCOVERY "
    "NOISE_SEED KINETICS_STATISTICS",
    "flow": "RECOLOUR_FLOW FLOW_ESTIMATOR FLOW_WEIGHTS REMOVE_CAMERA_MOTION",
    "video": "FLOW_ESTIMATOR FLOW_WEIGHTS REMOVE_CAMERA_MOTION FRAME_RATE SAVE",
    "output": "OUTPUT_DIR RUN_NAME",
}


def test_groups_say_where_settings_count():
    assert {word: sorted(DEFAULTS.marked(word)) for word in GROUPS} == {
        word: sorted(names.split()) for word, names in GROUPS.items()
    }
    assert DEFAULTS.marked("tta", "video") == [*DEFAULTS.marked("tta"), *DEFAULTS.marked("video")]
    marks = re.findall(r"^# .*\[(.*)\]$", SOURCE, flags=re.MULTILINE)
    assert {word for mark in marks for word in mark.split(", ")} == GROUPS.keys()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("BATCH_SIZE", "True", "a whole number from 1 to 1000000"),
        ("LEARNING_RATE", "float('nan')", "a number above 0"),
        ("RUN_NAME", '" "', "text in quotes, not empty, or None"),
        ("GPU", "0", "GPU indices in quotes"),
    ],
)
def test_a_wrong_value_in_config_is_named_with_its_line(edited, name, value, expected):
    """Name, value, place and what is expected."""
    kind = SOURCE.split("\n")[line_number(name) - 1].split(" = ")[0]
    module = edited(name, f"{kind} = {value}  # comment")
    found = f"config.py, line {line_number(name)}: {name} = {getattr(module, name)!r}: "
    with pytest.raises(SettingsError, match=re.escape(f"{found}expected {expected}")):
        load_settings(module)


def test_a_setting_that_config_has_lost_is_missed_where_it_is_read(edited):
    settings = load_settings(edited("BATCH_SIZE", "BACTH_SIZE: whole(1) = 4"))
    with pytest.raises(SettingsError, match="no setting BATCH_SIZE; the nearest is BACTH_SIZE"):
        _ = settings.batch_size


@pytest.mark.parametrize("kind", ["hole(1)", "whole", "whole()", "print('run')"])
def test_an_unknown_kind_is_refused(edited, kind, capsys):
    with pytest.raises(SettingsError, match=rf"config.py, line .* {re.escape(kind)} is no kind"):
        load_settings(edited("BATCH_SIZE", f"BATCH_SIZE: {kind} = 4"))
    assert capsys.readouterr().out == ""


def test_all_faults_of_a_file_are_named_at_once(edited):
    module = edited("BATCH_SIZE", "BACTH_SIZE = 1\nBATCH_SIZE: whole(1) = 0")
    with pytest.raises(SettingsError) as error:
        load_settings(module)
    line = line_number("BATCH_SIZE")
    assert [row.split(" (")[0] for row in str(error.value).split("\n")] == [
        f"config.py, line {line}: no setting is named BACTH_SIZE; the nearest is BATCH_SIZE",
        f"config.py, line {line + 1}: BATCH_SIZE = 0: expected a whole number from 1 to 1000000",
    ]


# The object


def test_settings_are_fixed_and_name_the_nearest():
    """No setting can be changed in place, none invented."""
    with pytest.raises(AttributeError):
        DEFAULTS.batch_size = 1
    with pytest.raises(SettingsError, match="BACTH_SIZE; the nearest is BATCH_SIZE"):
        _ = DEFAULTS.bacth_size
    with pytest.raises(SettingsError, match="nearest is EPOCHS"):
        DEFAULTS.replace(epoch=1)


def test_replace_checks_and_leaves_the_original():
    """A copy with changes, checked like a file."""
    changed = DEFAULTS.replace(batch_size=3, learning_rate=1)
    assert (changed.batch_size, changed.learning_rate) == (3, 1.0)
    assert type(changed.learning_rate) is float
    assert DEFAULTS.batch_size == config.BATCH_SIZE
    assert changed != DEFAULTS == changed.defaults()
    with pytest.raises(SettingsError, match="batch_size=0: expected a whole number from 1"):
        DEFAULTS.replace(batch_size=0)


def test_a_list_setting_does_not_share_memory_with_config():
    """Changing the list leaves config.py's alone."""
    load_settings(config).train_sets.append("other")
    assert "other" not in config.TRAIN_SETS


def test_settings_survive_pickling():
    """They travel to the processes that training starts."""
    settings = DEFAULTS.replace(seed=7)
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings
    assert copy.replace(seed=0) == DEFAULTS


def test_values_that_do_not_go_together():
    """Each allowed alone; equal values are fine."""
    most = DEFAULTS.replace(min_learning_rate=DEFAULTS.learning_rate).learning_rate
    with pytest.raises(SettingsError, match=r"MIN_LEARNING_RATE = .* above LEARNING_RATE = "):
        DEFAULTS.replace(min_learning_rate=2 * most)


# Flags


def test_flags_change_settings():
    """Every kind of flag; what is not given stays."""
    settings = parse(
        *["--batch-size", "4", "--backbone=mit_b0", "--learning-rate", "1e-3", "--sigma", "2"],
        *["--knn-filtering", "No", "--tta-flip", "--train-sets", "A", "B", "--gpu", ""],
        *["--stage1-checkpoint", "none", "--run-name", "x", "--image-sizes", "64", "96"],
    )
    assert parse("--image-sizes", "none").image_sizes is None
    expected = DEFAULTS.as_dict() | {
        "BATCH_SIZE": 4,
        "BACKBONE": "mit_b0",
        "LEARNING_RATE": 1e-3,
        "SIGMA": 2.0,
        "KNN_FILTERING": False,
        "TTA_FLIP": True,
        "TRAIN_SETS": ["A", "B"],
        "GPU": "",
        "STAGE1_CHECKPOINT": None,
        "RUN_NAME": "x",
        "IMAGE_SIZES": [64, 96],
    }
    assert settings.as_dict() == expected


def test_the_scripts_own_arguments_come_back_alone(capsys):
    """Without the settings among them, but with the names of those that were given."""
    parser = settings_parser(config, "A script.")
    parser.add_argument("--resume")
    with pytest.raises(SystemExit):
        parse_settings(parser, config, ["--resum", "x"])
    assert "--resum: no such flag; the nearest is --resume" in capsys.readouterr().err
    recipe = ROOT / "recipes/gsanet_resnet101.py"
    argv = ["--resume", "runs/x", "--seed", "3", "--config", str(recipe)]
    settings, arguments = parse_settings(parser, config, argv)
    in_files = {"TRAIN_SETS", "BACKBONE", "IMAGE_SIZE"}
    assert vars(arguments) == {"resume": "runs/x", "given": {"SEED"}, "in_files": in_files}
    assert settings.seed == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bacth-size", "4"], "--bacth-size: no such flag; the nearest is --batch-size"),
        (["--batch_size=4"], "--batch_size: no such flag; the nearest is --batch-size"),
        (["--batch", "4"], "--batch: no such flag; the nearest is --batch-size"),
        (["stray"], "unrecognized arguments: stray"),
        (["--batch-size", "1.5"], "--batch-size 1.5: expected a whole number from 1 to 1000000"),
        (["--knn-filtering", "maybe"], "--knn-filtering maybe: expected True or False"),
        (["--data-root", ""], "--data-root '': expected a path"),
        (["--train-sets", "A", ""], "--train-sets A : expected a list of different values"),
        (["--learning-rate", "1e-9"], "MIN_LEARNING_RATE = 1e-05 is above LEARNING_RATE = 1e-09"),
        (["--batch-size", "9" * 5000], "expected a whole number from 1 to 1000000"),
        (["--config", "no/such.py"], "no/such.py: cannot read this settings file: No such file"),
    ],
)
def test_a_wrong_flag_stops_with_a_message(capsys, argv, message):
    """Exit status 2, the message on stderr."""
    assert message in refused(capsys, *argv)


def test_help_lists_every_setting_in_its_group(monkeypatch):
    """Headings, order, comments and defaults of the file."""
    monkeypatch.setenv("COLUMNS", "300")
    text = settings_parser(config, "What the script does.").format_help()
    assert "What the script does." in text
    seen = []
    for group in re.split(r"^# ", SOURCE, flags=re.MULTILINE)[1:]:
        heading, *rows = group.strip().split("\n")
        section = text.split(f"\n{heading.partition(' [')[0]}:\n")[1].split("\n\n")[0]
        for row in rows:
            name, value, comment = re.fullmatch(r"(\w+): .*? = (.*?)  # (.*)", row).groups()
            shown = re.escape(f"{comment} (default: {eval(value)!r})")
            flag = "--" + name.lower().replace("_", "-")
            assert re.search(rf"{flag} [^-].*?\s{shown}", section, re.DOTALL)
            seen.append(name)
    assert seen == list(DEFAULTS.as_dict())


def test_help_may_list_some_groups_alone_and_all_flags_are_taken():
    parser = settings_parser(config, "", listed=("machine", "test"))
    text = parser.format_help()
    flags = set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE))
    shown = DEFAULTS.marked("machine", "test")
    assert flags == {"--config", *("--" + name.lower().replace("_", "-") for name in shown)}
    assert "Training (Sec. 4.4)" not in text
    assert parse_settings(parser, config, ["--epochs", "7"])[0].epochs == 7


def test_a_misspelt_flag_is_named_before_a_missing_one(capsys):
    parser = settings_parser(config, "")
    parser.add_argument("--output", required=True)
    with pytest.raises(SystemExit):
        parse_settings(parser, config, ["--ouput", "x"])
    assert "--ouput: no such flag; the nearest is --output" in capsys.readouterr().err


def test_help_takes_any_comment(edited):
    """Signs that mean something to argparse are text here."""
    module = edited("THRESHOLD", "THRESHOLD: share = 0.5  # 50% of %(prog)s, {x}, é")
    assert "50% of %(prog)s, {x}, é (default: 0.5)" in settings_parser(module, "").format_help()


# Files


def test_a_written_file_has_the_groups_and_comments_of_config(tmp_path):
    path = tmp_path / "run" / "settings.py"
    write_settings(parse("--batch-size", "4", "--gpu", "0,1"), path)
    body = SOURCE.split('"""')[2].replace("from __future__ import annotations\n\n", "")
    body = re.sub(r"^(\w+): .*? = .*?(  # .*)$", r"\1\2", body, flags=re.MULTILINE)
    found = path.read_text(encoding="utf-8").split('"""')[2]
    assert re.sub(r"^(\w+) = .*?(  # .*)$", r"\1\2", found, flags=re.MULTILINE) == body
    assert [file.name for file in path.parent.iterdir()] == ["settings.py"]
    written = import_file(path)
    assert (written.BATCH_SIZE, written.GPU, written.ADAM_EPSILON) == (4, "0,1", 1e-8)


@pytest.mark.parametrize("value", ['"DAV" + "IS"', '(\n    "DAV"\n    "IS"\n)'])
def test_a_written_file_gives_the_same_settings(tmp_path, edited, value):
    """Whether config.py has a value as text, computes it, or spreads it over lines."""
    settings = load_settings(edited("VAL_SET", f"VAL_SET: str = {value}  # comment")).replace(
        run_name='it\'s "é" \\ \n#', train_sets=["A", "B"], learning_rate=1 / 3, gpu=""
    )
    assert settings.val_set == "DAVIS"
    path = tmp_path / "settings.py"
    write_settings(settings, path)
    assert read_settings_file(path, DEFAULTS) == settings
    assert parse("--config", str(path)) == settings
    assert parse("--config", str(path), "--seed", "9") == settings.replace(seed=9)


def test_files_are_combined_and_flags_go_before_them(tmp_path):
    """The last file counts; what no file names stays as in config.py."""
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("\ufeff# Edited elsewhere\nIMAGE_SIZE = 512\nSEED = 1\nEPOCHS = 3\n", "utf-8")
    second.write_text('"""A recipe."""\n\nSEED: whole(0) = 2  # a comment\n', "utf-8")
    expected = DEFAULTS.replace(image_size=512, seed=2, epochs=9)
    flags = ("--epochs", "9")
    assert parse("--config", str(first), str(second), *flags) == expected
    assert parse("--config", str(first), *flags, "--config", str(second)) == expected


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("recipes/*.py")), ids=lambda path: path.stem)
def test_recipes_hold_only_what_differs_from_config(recipe):
    values, defaults = parse("--config", str(recipe)).as_dict(), DEFAULTS.as_dict()
    named = re.findall(r"^(\w+) = ", recipe.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if recipe.stem == "finetune":
        named.remove("STILL_SHARE")  # the file follows others, which may have another value
    assert sorted(named) == sorted(name for name in defaults if values[name] != defaults[name])


def test_a_value_may_be_computed_in_config_py(edited):
    module = edited("EVAL_BATCH_SIZE", "EVAL_BATCH_SIZE: whole(1) = 2 * 3")
    values = SimpleNamespace(**runpy.run_path(module.__file__))  # as inference.load reads the file
    for source in (module, values):
        assert load_settings(source).eval_batch_size == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EPOCHS = print('run')", "line 1: expected NAME = value"),
        ("import os", "line 1: expected NAME = value"),
        ("A = B = 1", "line 1: expected NAME = value"),
        ("EPOCHS: print('run')", "line 1: expected NAME = value"),
        (
            "EPOCHS: print('run') = 0",
            "line 1: EPOCHS = 0: expected a whole number from 1 to 1000000",
        ),
        ("EPOCH = 1", "line 1: no setting is named EPOCH; the nearest is EPOCHS"),
        ("EPOCHS = [", "not a settings file in Python's syntax"),
        ("EPOCHS = " + "-" * 9999 + "1", "not a settings file in Python's syntax"),
        ("EPOCHS = 1\0", "not a settings file in Python's syntax"),
        ("EPOCHS = 0\nimport os\nSEEDS = 1", "line 3: no setting is named SEEDS"),
        ("EPOCHS = " + "[" * 99 + "]" * 99, "line 1: EPOCHS = [[["),
    ],
)
def test_a_settings_file_is_not_run(tmp_path, capsys, text, message):
    """Only plain values are read; faults name file and line."""
    path = tmp_path / "settings.py"
    path.write_text(f"{text}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        read_settings_file(path, DEFAULTS)
    assert capsys.readouterr().out == ""


def test_a_script_as_its_own_process(tmp_path):
    """A good run, a wrong flag and a wrong file, as a user meets them."""
    (tmp_path / "config.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "script.py").write_text(
        f"import sys\n"
        f"sys.path.append({str(ROOT)!r})\n"
        f"import config\n"
        f"from utils.settings import parse_settings, settings_parser\n"
        f"parser = settings_parser(config, description='A script.')\n"
        f"settings, _ = parse_settings(parser, config)\n"
        f"print(settings.batch_size)\n",
        encoding="utf-8",
    )

    def run(*argv):
        command = [sys.executable, "script.py", *argv]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    good = run("--batch-size", "5")
    assert (good.returncode, good.stdout, good.stderr) == (0, "5\n", "")
    wrong_flag = run("--bacth-size", "5")
    assert (wrong_flag.returncode, wrong_flag.stdout) == (2, "")
    assert "script.py: --bacth-size: no such flag; the nearest is --batch-size" in wrong_flag.stderr

    text = SOURCE.replace("\nSEED: ", "\nBACTH_SIZE = 4\nSEED: ")
    (tmp_path / "config.py").write_text(text, encoding="utf-8")
    wrong_file = run()
    assert (wrong_file.returncode, wrong_file.stdout) == (2, "")
    assert "no setting is named BACTH_SIZE; the nearest is BATCH_SIZE" in wrong_file.stderr
    assert "Traceback" not in wrong_file.stderr
