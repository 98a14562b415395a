"""The verbs, through the command line's own entry."""

import json

import pytest
from test_study import votes_file
from toy_runs import two_runs

from jaxbooth import cli


@pytest.fixture
def call(monkeypatch, capsys):
    """`call("report", ...)` gives the exit code and what was printed."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["jaxbooth", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out + said.err

    return run


def test_report_study_and_tally(tmp_path, call):
    first, second = two_runs(tmp_path)
    assert call("report", first, second, tmp_path / "page.html") == (0, f"{tmp_path / 'page.html'}\n")
    code, said = call("study", first, second, tmp_path / "study", "--questions", 4)
    assert code == 0 and "6 questions, dreambooth against textual_inversion, dealt out to 2 people or more" in said
    key_file = tmp_path / "study" / "key.json"
    assert key_file.stat().st_mode & 0o777 == 0o600
    key = json.loads(key_file.read_text())
    votes = votes_file(tmp_path / "ann.json", key, "ann", lambda item: "dreambooth")
    code, said = call("study", "tally", votes, "--key", key_file, "--json", tmp_path / "tally.json")
    assert code == 0 and "| Prompt fidelity  | 100 % (44-100)" in said and "6 questions have fewer than 3 votes" in said
    found = json.loads((tmp_path / "tally.json").read_text())
    assert found["results"][0]["wins"] == [3, 0, 0] and found["raters"] == ["ann"]
    assert call("study", "tally", votes, "--key", key_file, "--json", tmp_path / "tally.json")[0] == 0  # its own file


def test_what_is_wrong_ends_with_code_2(tmp_path, call):
    first, second = two_runs(tmp_path)
    (tmp_path / "mine.json").write_text("{}")
    for arguments, words in (
        (("report", first), "report takes a run or more"),
        (("report", first, tmp_path / "page.txt"), "ends in .html"),
        (("report", tmp_path / "nowhere", tmp_path / "page.html"), "no such folder"),
        (("study", first, second), "study takes two runs or more"),
        (("study", first, second, tmp_path / "out", "--kind", "taste"), "--kind taste is not known"),
        (("study", "tally", tmp_path / "mine.json", "--key", tmp_path / "mine.json"), "is no key"),
        (("study", "tally", tmp_path / "mine.json", "--key", "x", "--json", tmp_path / "mine.json"), "is no tally"),
    ):
        code, said = call(*arguments)
        assert code == 2 and words in said and "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "photos", "runs"]
