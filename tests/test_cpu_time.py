"""The budget of CPU time is added up over folders and runs."""

import json

from tests.cpu_time import OUTSIDE, main


def test_folders_and_limits(tmp_path, capsys):
    for name, minutes in (("all", 30), ("compat", 2)):
        seconds = {
            "tests/data/test_a.py::test_b[x/y]": 60 * minutes,
            "tests/data/test_c.py::test_d": 60,
            "tests/test_alone.py::test_e": 30,
            OUTSIDE: 30,
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(seconds))
    files = [str(tmp_path / f"{name}.json") for name in ("all", "compat")]
    assert main([*files, "--warn-above", "37", "--fail-above", "40"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][-2:] == ["all", "compat"]
    assert lines[1] == ["data", "31.00", "3.00"]
    assert ["test_alone.py", "0.50", "0.50"] in lines
    assert lines[-1] == ["all", "32.00", "4.00"]
    assert main([*files, "--warn-above", "35", "--fail-above", "40"]) == 0
    assert "WARNING: the tests took 36.0 CPU minutes, more than 35" in capsys.readouterr().out
    assert main([*files, "--warn-above", "30", "--fail-above", "35"]) == 1
    assert "FAILED: the tests took 36.0 CPU minutes" in capsys.readouterr().out
