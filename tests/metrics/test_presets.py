"""Protocols by the tools' names; that their pixels are the tools' is tested with the network."""

import inspect

import cleanfid.fid
import pytest
import torch_fidelity.defaults

from imgsynth.metrics import presets
from imgsynth.metrics.inception import NORMALISATIONS, SHA256
from imgsynth.metrics.presets import PRESETS, preset
from imgsynth.metrics.resize import RESIZES


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_it_stands_for_in_four_lines(name):
    first, pixels, images, limits = preset(name).text().splitlines()
    assert first.startswith(f"{name}: ")
    assert preset(name).resize in pixels
    assert preset(name).normalisation in pixels
    assert "50,000 generated" in images
    assert "all of train" in images
    assert limits.startswith("  Limits: ")
    assert all(line.endswith(".") for line in (first, pixels, images, limits))


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_settings_exist(name):
    assert preset(name).name == name
    assert preset(name).resize in RESIZES
    assert preset(name).normalisation in NORMALISATIONS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_hands_its_settings_to_the_extractor(name, monkeypatch):
    made = []
    monkeypatch.setattr(presets, "InceptionExtractor", lambda *values: made.append(values))
    tool = preset(name)
    tool.extractor("weights.pth")
    tool.extractor(expected=None)
    settings = (tool.resize, tool.normalisation, tool.logits_bias)
    assert made == [("weights.pth", *settings, SHA256), (None, *settings, None)]


def test_no_two_tools_but_those_of_one_graph_do_the_same_to_pixels():
    done = {(p.resize, p.normalisation, p.logits_bias): p.name for p in PRESETS.values()}
    assert len(done) == len(PRESETS) - 1
    one, other = preset("torch-fidelity"), preset("stylegan2-ada")
    assert (one.resize, one.normalisation) == (other.resize, other.normalisation)


def test_counts_are_those_of_the_installed_tools():
    options = inspect.signature(cleanfid.fid.compute_fid).parameters
    assert preset("clean-fid").num_generated == options["num_gen"].default
    assert preset("clean-fid").real_split == options["dataset_split"].default
    assert preset("torch-fidelity").splits == torch_fidelity.defaults.DEFAULTS["isc_splits"]


def test_an_unknown_protocol_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"no protocol 'cleanfid'\. Did you mean clean-fid\? There"
    ):
        preset("cleanfid")
