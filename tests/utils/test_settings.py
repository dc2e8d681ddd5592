"""Settings: config.py, flags, checks, and the file that a run leaves behind."""

import importlib.util
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import config
from models.losses import LOSSES
from utils.settings import (
    RULES,
    SettingsError,
    load_settings,
    parse_settings,
    read_settings_file,
    settings_parser,
    write_settings,
)

ROOT = Path(config.__file__).parent
SOURCE = Path(config.__file__).read_text(encoding="utf-8")


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
        text, count = re.subn(rf"^{name} = .*$", lambda _: line, SOURCE, flags=re.MULTILINE)
        assert count == 1
        path = tmp_path / "config.py"
        path.write_text(text, encoding="utf-8")
        return import_file(path)

    return edit


def line_number(name):
    """The line of config.py that sets this name."""
    lines = SOURCE.split("\n")
    return next(i for i, line in enumerate(lines, 1) if line.startswith(f"{name} ="))


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


def test_rules_and_config_have_the_same_names():
    """Neither can drift from the other."""
    names = {name for name in vars(config) if name.isupper()}
    assert set(RULES) == names


def test_settings_are_the_values_of_config():
    """Every value, in the order of the file."""
    settings = load_settings(config)
    assert settings.as_dict() == {name: getattr(config, name) for name in RULES}
    assert settings.batch_size == config.BATCH_SIZE
    assert list(settings.as_dict())[:2] == ["DATA_ROOT", "PRETRAIN_SET"]


def test_settings_are_fixed_and_names_the_nearest():
    """No setting can be changed in place, none invented."""
    settings = load_settings(config)
    with pytest.raises(AttributeError, match=r"replace\(batch_size="):
        settings.batch_size = 1
    with pytest.raises(AttributeError, match="bacth_size; the nearest is batch_size"):
        _ = settings.bacth_size
    with pytest.raises(AttributeError, match="nearest is epochs"):
        settings.replace(epoch=1)


def test_replace_checks_and_leaves_the_original():
    """A copy with changes, checked like a file."""
    settings = load_settings(config)
    changed = settings.replace(batch_size=3, learning_rate=1)
    assert (changed.batch_size, changed.learning_rate) == (3, 1.0)
    assert type(changed.learning_rate) is float
    assert settings.batch_size == config.BATCH_SIZE
    assert changed != settings
    with pytest.raises(SettingsError, match=r"batch_size=0: expected a whole number from 1 to"):
        settings.replace(batch_size=0)


def test_a_list_setting_does_not_share_memory_with_config():
    """Changing the list leaves config.py's alone."""
    settings = load_settings(config)
    settings.train_sets.append("other")
    assert "other" not in config.TRAIN_SETS


def test_settings_survive_pickling():
    """They travel to the processes that training starts."""
    settings = load_settings(config).replace(seed=7)
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings
    assert copy.replace(seed=0) == load_settings(config)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("BATCH_SIZE", '"12"', "a whole number from 1 to 1000000"),
        ("BATCH_SIZE", "1.5", "a whole number from 1 to 1000000"),
        ("BATCH_SIZE", "0", "a whole number from 1 to 1000000"),
        ("BATCH_SIZE", "-4", "a whole number from 1 to 1000000"),
        ("BATCH_SIZE", "True", "a whole number from 1 to 1000000"),
        ("BATCH_SIZE", "None", "a whole number from 1 to 1000000"),
        ("WORKERS", "-1", "a whole number from 0"),
        ("IMAGE_SIZE", "100", "a multiple of 32"),
        ("IMAGE_SIZE", "0", "a multiple of 32"),
        ("SEED", "2**32", "from 0 to 4294967295"),
        ("LEARNING_RATE", '"1e-4"', "a number above 0"),
        ("LEARNING_RATE", "0", "a number above 0"),
        ("LEARNING_RATE", "float('inf')", "a number above 0"),
        ("LEARNING_RATE", "float('nan')", "a number above 0"),
        ("LEARNING_RATE", "10**400", "a number above 0"),
        ("LEARNING_RATE", "True", "a number above 0"),
        ("ADAM_BETA2", "1.0", "from 0 to below 1"),
        ("THRESHOLD", "1.1", "from 0 to 1"),
        ("CROP_SCALE", "0", "above 0, at most 1"),
        ("FLOW_TURN", "181", "from 0 to 180"),
        ("PRETRAIN_VAL_SHARE", "0", "above 0, below 1"),
        ("DATA_ROOT", "3", "a path in quotes"),
        ("DATA_ROOT", '""', "not empty"),
        ("RUN_NAME", '" "', "or None"),
        ("MODEL", "None", "text in quotes"),
        ("KNN_FILTERING", "1", "True or False"),
        ("KNN_FILTERING", '"false"', "True or False"),
        ("TRAIN_SETS", '"DAVIS_train"', "a list, such as"),
        ("TRAIN_SETS", "[]", "a list, such as"),
        ("TRAIN_SETS", "[1]", "a list, such as"),
        ("TRAIN_SETS", '["A", "A"]', "of different values"),
        ("TTA_SCALES", "[1, 1.0]", "of different values"),
        ("IMAGE_SIZES", "[]", "or None"),
        ("IMAGE_SIZES", "[64, 100]", "each a whole number from 32 to 8192, a multiple of 32"),
        ("IMAGE_SIZES", "[[64]]", "each a whole number"),
        ("IMAGE_SIZE", "10**9 // 32 * 32", "from 32 to 8192"),
        ("BATCH_SIZE", "10**20", "a whole number from 1 to 1000000"),
        ("GPU", "0", "GPU indices in quotes"),
        ("GPU", '"0,"', "GPU indices in quotes"),
        ("GPU", '"1, 01"', "different GPU indices"),
        ("GPU", '"cuda:0"', "GPU indices in quotes"),
    ],
)
def test_a_wrong_value_in_config_is_named_with_its_line(edited, name, value, expected):
    """Name, value, place and what is expected."""
    module = edited(name, f"{name} = {value}  # comment")
    with pytest.raises(SettingsError) as error:
        load_settings(module)
    found = repr(getattr(module, name))
    start = f"config.py, line {line_number(name)}: {name} = {found}: expected "
    assert str(error.value).startswith(start)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "used"),
    [
        ("LEARNING_RATE", "1", 1.0),
        ("MIN_LEARNING_RATE", "0", 0.0),
        ("IMAGE_SIZE", "32", 32),
        ("IMAGE_SIZE", "7 * 32", 224),
        ("GPU", '""', ""),
        ("GPU", '" 0, 10 "', "0,10"),
        ("TRAIN_SETS", '("A", "B")', ["A", "B"]),
        ("STAGE1_CHECKPOINT", "None", None),
        ("IMAGE_SIZES", "None", None),
        ("IMAGE_SIZES", "(64, 96)", [64, 96]),
        ("BACKBONE_WEIGHTS", '"weights/mit"', "weights/mit"),
    ],
)
def test_allowed_values(edited, name, value, used):
    """Edges of what is allowed, in the form that the code uses."""
    settings = load_settings(edited(name, f"{name} = {value}"))
    found = getattr(settings, name.lower())
    assert found == used
    assert type(found) is type(used)


def test_a_misspelt_name_in_config_names_the_nearest(edited):
    """One message: not also that the real name is missing."""
    module = edited("BATCH_SIZE", "BACTH_SIZE = 4")
    with pytest.raises(SettingsError) as error:
        load_settings(module)
    assert str(error.value) == (
        f"config.py, line {line_number('BATCH_SIZE')}: no setting is named BACTH_SIZE; "
        "the nearest is BATCH_SIZE"
    )


def test_a_lower_case_name_in_config_is_refused(edited):
    """It would otherwise be ignored without a word."""
    with pytest.raises(SettingsError, match="no setting is named seed; the nearest is SEED"):
        load_settings(edited("SEED", "seed = 4"))


def test_all_faults_of_a_file_are_named_at_once(edited):
    """Names that stand earlier in the file (WORKERS) and later (SEED) than their repeats."""
    module = edited("EPOCHS", "SEED = 0\nWORKERS = 1\nCHANELS = 1\nBATCH_SIZE = 4")
    with pytest.raises(SettingsError) as error:
        load_settings(module)
    line = line_number("EPOCHS")
    assert set(str(error.value).split("\n")) == {
        f"config.py, line {line + 1}: WORKERS is set again after line {line_number('WORKERS')}",
        f"config.py, line {line + 2}: no setting is named CHANELS; the nearest is CHANNELS",
        f"config.py, line {line_number('BATCH_SIZE') + 3}: BATCH_SIZE is set again after line "
        f"{line + 3}",
        f"config.py, line {line_number('SEED') + 3}: SEED is set again after line {line}",
        "config.py: EPOCHS is missing; add it, set to a whole number from 1 to 1000000",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learning_rate": 1e-6, "min_learning_rate": 1e-5},
            "MIN_LEARNING_RATE = 1e-05 is above LEARNING_RATE = 1e-06",
        ),
        (
            {"num_neighbours": 9, "num_clusters": 8},
            "NUM_NEIGHBOURS = 9 is above NUM_CLUSTERS = 8",
        ),
    ],
)
def test_values_that_do_not_go_together(changes, message):
    """Each allowed alone; equal values are fine."""
    with pytest.raises(SettingsError, match=message):
        load_settings(config).replace(**changes)
    equal = dict.fromkeys(changes, min(changes.values()))
    load_settings(config).replace(**equal)


def test_flags_change_settings():
    """Every kind of flag; what is not given stays."""
    settings = parse(
        *["--batch-size", "4", "--backbone=mit_b0", "--learning-rate", "1e-3", "--sigma", "2"],
        *["--knn-filtering", "No", "--guided-slots", "1", "--train-sets", "A", "B", "--gpu", ""],
        *["--stage1-checkpoint", "none", "--run-name", "x", "--image-sizes", "64", "96"],
    )
    expected = load_settings(config).as_dict() | {
        "BATCH_SIZE": 4,
        "BACKBONE": "mit_b0",
        "LEARNING_RATE": 1e-3,
        "SIGMA": 2.0,
        "KNN_FILTERING": False,
        "GUIDED_SLOTS": True,
        "TRAIN_SETS": ["A", "B"],
        "GPU": "",
        "STAGE1_CHECKPOINT": None,
        "RUN_NAME": "x",
        "IMAGE_SIZES": [64, 96],
    }
    assert parse("--image-sizes", "none").image_sizes is None
    assert settings.as_dict() == expected


def test_the_scripts_own_arguments_come_back_alone():
    """Without the settings among them, but with the names of those that came as flags."""
    parser = settings_parser(config, "A script.")
    parser.add_argument("--resume")
    settings, arguments = parse_settings(parser, config, ["--resume", "runs/x", "--seed", "3"])
    assert vars(arguments) == {"resume": "runs/x", "config": None, "given": {"SEED"}}
    assert settings.seed == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bacth-size", "4"], "--bacth-size: no such flag; the nearest is --batch-size"),
        (["--batch_size=4"], "--batch_size: no such flag; the nearest is --batch-size"),
        (["--batch", "4"], "--batch: no such flag; the nearest is --batch-size"),
        (["stray"], "'stray': expected a flag before it"),
        (["--batch-size", "1.5"], "--batch-size 1.5: expected a whole number from 1 to 1000000"),
        (["--batch-size", "-1"], "--batch-size -1: expected a whole number from 1 to 1000000"),
        (["--knn-filtering", "maybe"], "--knn-filtering maybe: expected True or False"),
        (["--learning-rate", "nan"], "--learning-rate nan: expected a number above 0"),
        (["--data-root", ""], "--data-root '': expected a path"),
        (["--train-sets", "A", ""], "--train-sets A : expected a list, such as"),
        (["--learning-rate", "1e-9"], "MIN_LEARNING_RATE = 1e-05 is above LEARNING_RATE = 1e-09"),
        (["--resume", ""], '--resume "": expected a name or a path, not an empty text'),
        (["--seed", "1", "--resume", "x", ""], '--resume "": expected'),
        (["--config="], '--config "": expected a name or a path'),
        (["--batch-size", "9" * 5000], "expected a whole number from 1 to 1000000"),
        (["--config", "no/such.py"], "no/such.py: cannot read this settings file: No such file"),
    ],
)
def test_a_wrong_flag_stops_with_a_message(capsys, argv, message):
    """Exit status 2, the message on stderr."""
    assert message in refused(capsys, *argv)


def test_the_nearest_flag_may_be_the_scripts_own(capsys):
    """Suggestions know all flags of the script."""
    parser = settings_parser(config, "A script.")
    parser.add_argument("--checkpoint")
    with pytest.raises(SystemExit):
        parse_settings(parser, config, ["--chekpoint", "x"])
    assert "--chekpoint: no such flag; the nearest is --checkpoint" in capsys.readouterr().err


def test_help_lists_every_setting_in_its_group(monkeypatch):
    """Headings, order, comments and defaults of the file."""
    monkeypatch.setenv("COLUMNS", "300")
    text = settings_parser(config, "What the script does.").format_help()
    assert "What the script does." in text
    headings = re.findall(r"^# (.+)$", SOURCE, flags=re.MULTILINE)
    assert re.findall(r"^(\w.*):$", text, flags=re.MULTILINE)[-len(headings) :] == headings
    group = None
    seen = []
    for row in SOURCE.split("\n"):
        if row.startswith("# "):
            group = row[2:]
        elif row[:1].isupper() and " = " in row:
            name = row.split(" = ")[0]
            comment = row.split("  # ", 1)[1]
            section = text.split(f"\n{group}:\n")[1].split("\n\n")[0]
            flag = "--" + name.lower().replace("_", "-")
            assert re.search(
                rf"{flag} [^-].*?\s{re.escape(comment)} \(default: ", section, re.DOTALL
            )
            seen.append(name)
    assert seen == list(RULES)
    assert "(default: 12)" in text
    assert "(default: DAVIS_train)" in text
    assert "(default: none)" in text


def test_help_takes_any_comment(edited):
    """Signs that mean something to argparse are text here."""
    module = edited("THRESHOLD", "THRESHOLD = 0.5  # 50% of %(prog)s, {x}")
    assert "50% of %(prog)s, {x} (default: 0.5)" in settings_parser(module, "").format_help()


def test_a_written_file_differs_from_config_only_where_settings_do(tmp_path):
    """So a diff shows what was changed."""
    path = tmp_path / "run" / "settings.py"
    write_settings(parse("--batch-size", "4", "--gpu", "0, 1"), path)
    body = SOURCE.split('"""')[2]
    body = re.sub(r"^BATCH_SIZE = \d+", "BATCH_SIZE = 4", body, flags=re.MULTILINE)
    body = re.sub(r'^GPU = "0"', "GPU = '0,1'", body, flags=re.MULTILINE)
    assert path.read_text(encoding="utf-8").split('"""')[2] == body
    assert [file.name for file in path.parent.iterdir()] == ["settings.py"]
    assert import_file(path).BATCH_SIZE == 4


def test_a_written_file_gives_the_same_settings(tmp_path, edited):
    """Read back, and through --config with a flag on top."""
    module = edited("IMAGE_SIZE", "IMAGE_SIZE = 7 * 32")
    settings = load_settings(module).replace(
        run_name='it\'s "é" \\ \n#', train_sets=["A", "B"], learning_rate=1 / 3, gpu=""
    )
    path = tmp_path / "settings.py"
    write_settings(settings, path)
    assert read_settings_file(path) == settings
    assert parse("--config", str(path)) == settings
    assert parse("--config", str(path), "--seed", "9") == settings.replace(seed=9)
    write_settings(load_settings(config), path)
    assert read_settings_file(path) == load_settings(config)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as editors on Windows do
    assert read_settings_file(path) == load_settings(config) == load_settings(import_file(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("EPOCHS = print('run')", "line 1: expected NAME = value"),
        ("import os", "line 1: expected NAME = value"),
        ("A = B = 1", "line 1: expected NAME = value"),
        ("EPOCHS = [", "not a settings file in Python's syntax"),
        ("EPOCHS = 1\0", "not a settings file in Python's syntax"),
        (f"EPOCHS = {'[' * 5000}{']' * 5000}", "not a settings file"),
        (f"EPOCHS = {'-' * 50000}1", "not a settings file"),
        ("EPOCHS = 1.5", "line 1: EPOCHS = 1.5: expected a whole number from 1 to 1000000"),
    ],
)
def test_a_settings_file_is_not_run(tmp_path, capsys, line, message):
    """Only plain values are read; faults name file and line."""
    path = tmp_path / "settings.py"
    path.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        read_settings_file(path)
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

    text = SOURCE.replace("\nBATCH_SIZE = ", "\nBACTH_SIZE = ")
    (tmp_path / "config.py").write_text(text, encoding="utf-8")
    wrong_file = run()
    assert (wrong_file.returncode, wrong_file.stdout) == (2, "")
    assert "no setting is named BACTH_SIZE; the nearest is BATCH_SIZE" in wrong_file.stderr
    assert "Traceback" not in wrong_file.stderr


def test_every_loss_can_be_chosen():
    """The rule has their names of its own, so that reading settings does not import torch."""
    assert all(RULES["LOSS"].accepts(name) for name in (*LOSSES, None))
    assert not RULES["LOSS"].accepts("dice")
