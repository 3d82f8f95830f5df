"""Tables of labels and splits."""

from pathlib import Path

import pytest

from imgsynth.data.table import read_table


def write(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "file,label,split\na.png,cat,train\nb/c.png,dog,test\n"),
        ("t.csv", '\ufeffFile_Name;Class;Split\n"a.png";cat;train\n\nb/c.png;dog;test'),
        ("t.tsv", "split\tcategory\tpath\tmore\ntrain\tcat\ta.png\t1\ntest\tdog\tb/c.png\t2\n"),
        ("t.jsonl", '{"image": "a.png", "label": "cat", "split": "train"}\n\n'
                    '{"split": "test", "label": "dog", "image": "b/c.png", "x": null}\n'),
    ],
)  # fmt: skip
def test_every_way_of_writing_a_table_says_the_same(tmp_path: Path, name: str, text: str) -> None:
    expected = {"a.png": ("cat", "train"), "b/c.png": ("dog", "test")}
    assert read_table(write(tmp_path, name, text)) == expected


def test_a_column_may_be_absent_and_numbers_are_text(tmp_path: Path) -> None:
    assert read_table(write(tmp_path, "t.jsonl", '{"file": "a", "label": 3}')) == {"a": ("3", None)}
    assert read_table(write(tmp_path, "t.csv", "file,split\na,test")) == {"a": (None, "test")}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "has no rows"),
        ("t.csv", "file,label\n", "has no rows"),
        ("t.csv", "name,label\na,cat\n", "line 2: expected a file .* got the columns name, label"),
        ("t.csv", "file,value\na,1\n", "line 2: expected a file and its label or split"),
        ("t.csv", "file,label\na,cat\nb,\n", "line 3: a value is missing"),
        ("t.csv", "file,label\na,cat\na,dog\n", "line 3: 'a' is label 'dog', but label 'cat'"),
        ("t.jsonl", '{"file": "a", "label": "x"}\n{"file"', "line 2: no JSON object"),
        ("t.jsonl", '{"file": "a", "label": "x"}\n{"file": "b", "split": "u"}', "others have none"),
        (
            "t.jsonl",
            '{"file": "a", "label": ["x", "y"]}',
            "line 1: expected one JSON object of text",
        ),
        ("t.jsonl", "[1, 2]", r"line 1: expected one JSON object .* got '\[1, 2\]'"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path, name, text))


def test_a_missing_or_binary_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no table .*gone\.csv"):
        read_table(tmp_path / "gone.csv")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ValueError, match="is no UTF-8 text"):
        read_table(tmp_path / "x.csv")
