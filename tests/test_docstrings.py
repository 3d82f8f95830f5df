"""The examples of the documentation run and are true."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from torch import nn

import imgsynth

MODULES = [
    module.name
    for module in pkgutil.walk_packages(imgsynth.__path__, "imgsynth.")
    if not module.name.endswith("__main__") and ".experiments" not in module.name
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_are_true(name):
    module = importlib.import_module(name)
    names = {**vars(module), "torch": torch, "nn": nn}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for example in doctest.DocTestFinder().find(module, name, globs=names):
        runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)
