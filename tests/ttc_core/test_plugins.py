"""Modules of a user's own that do odd things while they are imported or called."""

import gc
import logging
import os
import signal
import socket
import sys
import warnings
from pathlib import Path

import pytest
import torch

from ttc_core.errors import LoadError, PluginError
from ttc_core.load import load
from ttc_core.methods import create
from ttc_core.plugins import call_factory, import_attribute, source_digest

NETWORK = (
    "from torch import nn\n"
    "def build():\n"
    "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4),\n"
    "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n"
)


@pytest.fixture
def module(tmp_path: Path, monkeypatch, request):
    """Write a module under a name of its own; return that name."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def write(text: str) -> str:
        name = f"own_{abs(hash((request.node.name, text)))}"
        (tmp_path / f"{name}.py").write_text(text)
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import sys; sys.exit(3)", r"it ended the program \(SystemExit: 3\)"),
        ("import argparse; argparse.ArgumentParser().parse_args(['--x'])", "ended the program"),
        ("class Own(BaseException): pass\nraise Own('odd')", "Own: odd"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("build = (", r"SyntaxError: .*\(own_\d+\.py, line 1\)"),
        ("from . import other", "ImportError: attempted relative import"),
        ("input('which? ')", "EOFError"),
        ("raise ValueError('x' * 10**6)", "ValueError: x{300}…"),
        ("raise ValueError('first\\nsecond')", r"ValueError: first\.$"),
        (
            "class E(Exception):\n def __str__(self): raise self\nraise E",
            r"cannot be imported: E\.$",
        ),
        ("def __getattr__(name): raise KeyError(name)", "KeyError"),
        ("build = 3", r"is no function or class but an object \(int\)"),
        ("from torch import nn\nbuild = nn.Flatten()", r"but an object \(Flatten\)"),
        ("def build(size): pass", "missing 1 required positional argument: 'size'"),
        ("async def build(): pass", "is an async function"),
        ("def build(): raise GeneratorExit", r"build\(\) failed: GeneratorExit\.$"),
        ("x = 1", r"has no 'build'"),
    ],
)
def test_whatever_a_module_does_ends_in_a_sentence(module, text, sentence, capsys):
    """No trace, no end of the program, no question that waits for an answer."""
    spec = f"{module(text)}:build"
    with pytest.raises(PluginError, match=sentence):
        call_factory(spec)
    with pytest.raises(LoadError):
        load(spec)


@pytest.mark.parametrize("returned", ["None", "type('Net', (), {})", "{'net': 1}"])
def test_a_factory_that_returns_something_else_is_told_what(module, returned):
    """A class in place of an instance is named as one."""
    with pytest.raises(LoadError, match=r"must return an nn\.Module or a SourceModel; it returned"):
        load(f"{module(f'def build(): return {returned}')}:build")


@pytest.mark.parametrize("spec", [":build", ".own:build", "own:", "json:build"])
def test_specs_that_name_nothing_are_refused(spec):
    """Also one whose name is that of a module of Python's own, whose place is told."""
    with pytest.raises(PluginError, match=r"expected is package\.module:attribute|json.*__init__"):
        import_attribute(spec)


def test_attributes_may_be_nested(module):
    """A factory can be a method of a class."""
    name = module("class Nets:\n    @staticmethod\n    def build(): return 7")
    spec = f"{name}:Nets.build"
    assert call_factory(spec) == 7


def test_ctrl_c_stays_the_users(module):
    """It ends the program, whatever is being imported."""
    with pytest.raises(KeyboardInterrupt):
        import_attribute(f"{module('raise KeyboardInterrupt')}:build")


def test_what_a_factory_changed_in_the_process_is_put_back(module, tmp_path, capsys):
    """Printing goes to standard error; folder, streams, signals and torch's defaults stay."""
    text = (
        "import os, signal, sys, torch\n"
        f"print('loud'); os.chdir({str(tmp_path)!r}); sys.stdout = sys.stderr = sys.stdin = None\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + NETWORK + "    \n"
        "torch.set_grad_enabled(False); torch.set_default_dtype(torch.float64)\n"
        "torch.set_num_threads(3); torch.set_float32_matmul_precision('medium')\n"
        "torch.set_default_device('meta'); torch.use_deterministic_algorithms(True)\n"
    )
    before = (
        *(os.getcwd(), sys.stdout, sys.stdin, signal.getsignal(signal.SIGTERM)),
        *(torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()),
        *(torch.is_grad_enabled(), torch.get_float32_matmul_precision()),
        torch.are_deterministic_algorithms_enabled(),
    )
    model = load(f"{module(text)}:build")
    after = (
        *(os.getcwd(), sys.stdout, sys.stdin, signal.getsignal(signal.SIGTERM)),
        *(torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()),
        *(torch.is_grad_enabled(), torch.get_float32_matmul_precision()),
        torch.are_deterministic_algorithms_enabled(),
    )
    assert after == before
    assert model.dtype == torch.float32
    assert capsys.readouterr().out == ""


def test_what_scripts_do_at_their_top_ends_with_them(module):
    """A deep recursion limit would let a stranger's JSON end the process, say."""
    text = (
        "import gc, logging.config, socket, sys, warnings, torch\n"
        "sys.setrecursionlimit(100_000); sys.setswitchinterval(1); gc.disable()\n"
        "socket.setdefaulttimeout(1); warnings.simplefilter('error')\n"
        "logging.basicConfig(force=True, level=1); logging.disable()\n"
        "logging.config.dictConfig({'version': 1}); torch.autograd.set_detect_anomaly(True)\n"
    )
    ours = logging.getLogger("service.of_a_test")
    ours.addHandler(logging.NullHandler())

    def surroundings():
        return (
            *(sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled()),
            *(socket.getdefaulttimeout(), [*warnings.filters], torch.is_anomaly_enabled()),
            *(
                logging.root.level,
                [*logging.root.handlers],
                ours.disabled,
                [*ours.handlers],
            ),
            ours.isEnabledFor(logging.WARNING),
        )

    before = surroundings()
    load(f"{module(text + NETWORK)}:build")
    assert surroundings() == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("class Own:\n def __init__(self, model): pass", "it has no predict, adapt, reset, state"),
        ("class Own:\n def __init__(self, model): raise SystemExit", "it ended the program"),
        ("class Own:\n def __init__(self, model): raise KeyError('k')", "KeyError: 'k'"),
        ("class Own: pass", r"TypeError: Own\(\) takes no arguments"),
        ("class Own:\n settings = 5\n def __init__(self, model): pass", "TypeError: 'int' object"),
        (
            "class Own:\n def __init__(self, model): pass\n"
            " @property\n def selects(self): raise KeyError('s')",
            "its description failed: KeyError: 's'",
        ),
        ("Own = 3", r"is no class but an object \(int\)"),
    ],
)
def test_a_class_that_is_no_method_is_refused(module, text, sentence):
    """When it is made, not when the first image comes."""
    with pytest.raises(ValueError, match=sentence):
        create(f"{module(text)}:Own", load(f"{module(NETWORK)}:build"))


def test_the_digest_of_code_is_of_its_package_and_of_nothing_installed(tmp_path, monkeypatch):
    """Relative imports, those inside functions, and the packages' own files; never our code."""
    files = {
        "own_package/__init__.py": "",
        "own_package/deep/__init__.py": "from . import beside",
        "own_package/deep/beside.py": "",
        "own_package/deep/method.py": "import ttc_core.errors\ndef f():\n    from ..far import g",
        "own_package/far.py": "import os.path, torch, own_other.part",
        "own_other/part.py": "from own_package.deep import *",
        "own_package/unused.py": "",
        "torch/__init__.py": "import broken syntax",
        "ttc_core/errors.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    spec = "own_package.deep.method:f"
    assert source_digest(spec) is None  # not imported yet
    import_attribute(spec)
    before = source_digest(spec)
    assert before == source_digest(f"{spec}@weights.pt") is not None
    matter = set()
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n# edited")
        matter |= {name} if source_digest(spec) != before else set()
        (tmp_path / name).write_text(text)
    assert files.keys() - matter == {"own_package/unused.py", "ttc_core/errors.py"}


@pytest.mark.parametrize(
    "spec", ["bundled", "cifar/resnet20@a:b", "torchvision/resnet18", "builtins:dict", "none:x"]
)
def test_what_has_no_code_of_ones_own_has_no_digest(spec):
    """Its version, or its weights, tell it apart."""
    assert source_digest(spec) is None
