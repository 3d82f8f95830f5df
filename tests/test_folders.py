from pathlib import Path

from imgsynth.folders import default_folder


def test_where_caches_are_is_the_environments_to_say(monkeypatch, tmp_path):
    monkeypatch.setenv("IMGSYNTH_CACHE", str(tmp_path / "here"))
    assert default_folder() == tmp_path / "here"
    monkeypatch.delenv("IMGSYNTH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    assert default_folder() == tmp_path / "there" / "imgsynth"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "imgsynth"
