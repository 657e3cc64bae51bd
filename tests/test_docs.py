"""The documentation's own claims, without building it: `make docs` does that."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import fastloss
from fastloss import losses, monitor
from fastloss.losses.base import Loss
from fastloss.registry import BATCH_LOSSES, LOSSES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ALL = {**LOSSES, **BATCH_LOSSES}

LINE = re.compile(
    r"^\* \*\*(?P<name>.+?)\.\*\* \*(?:Keras|Addons):\* .+\. \*Here:\* .+\. \*Why:\* .+\. "
    r"\*Test:\* `(?P<file>[\w/]+\.py)::(?P<test>test_\w+)`\.$"
)


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["generate"]


# --------------------------------------------------------------------------------------------------------------
# Differences
# --------------------------------------------------------------------------------------------------------------


def differences():
    """The lines of the page that begin a point."""
    return [line for line in (DOCS / "differences.md").read_text(encoding="utf-8").splitlines() if line[:2] == "* "]


def listed():
    """``DIFFERENCES`` of the parity tests, read rather than imported: that file needs Keras."""
    tree = ast.parse((ROOT / "tests" / "test_keras_parity.py").read_text(encoding="utf-8"))
    (table,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["DIFFERENCES"]
    ]
    return ast.literal_eval(table)


def test_every_difference_says_what_why_and_where_it_is_tested():
    assert differences()
    for line in differences():
        assert LINE.match(line), f"docs/differences.md: not of the form of the others: {line}"
    names = [LINE.match(line)["name"] for line in differences()]
    assert len(set(names)) == len(names), "a difference has more than one line"


def test_every_listed_difference_has_its_line():
    names = {LINE.match(line)["name"] for line in differences()}
    missing = set(listed()) - names
    assert not missing, f"docs/differences.md has no line for {sorted(missing)}, which test_keras_parity.py lists"


def test_the_tests_of_differences_exist():
    for line in differences():
        file, test = LINE.match(line).group("file", "test")
        path = ROOT / "tests" / file
        assert path.is_file(), f"docs/differences.md names {file}, which is not there"
        assert re.search(rf"^def {test}\(", path.read_text(encoding="utf-8"), re.M), f"{file} has no {test}"


def test_every_test_of_a_difference_is_named():
    text = (ROOT / "tests" / "test_differences.py").read_text(encoding="utf-8")
    named = {LINE.match(line)["test"] for line in differences()}
    unnamed = set(re.findall(r"^def (test_\w+)\(", text, re.M)) - named
    assert not unnamed, f"docs/differences.md does not name {sorted(unnamed)}"


# --------------------------------------------------------------------------------------------------------------
# Pages
# --------------------------------------------------------------------------------------------------------------


def test_every_loss_has_a_page(generate):
    pages = generate.pages()
    assert set(pages) == {"index.md", *(f"{name}.md" for name in ALL)}
    for name, row in ALL.items():
        page = pages[f"{name}.md"]
        assert f".. autoclass:: fastloss.losses.{row.cls.__name__}\n" in page
        assert (row.function is not None) == (".. autofunction::" in page)
        assert f"[`{row.cls.__name__}`]({name}.md)" in pages["index.md"]
        assert re.search(rf"^{name}$", pages["index.md"], re.M), "not in the tree of contents"


def test_identifiers_of_pages_are_known(generate):
    for row in ALL.values():
        for identifier in (*generate.names(row), *generate.aliases(row)):
            assert f"`{identifier}`" in generate.page(row)
            if identifier == row.cls.__name__:  # it may need arguments
                config = {"class_name": identifier, "config": dict(row.variants[0])}
                assert type(losses.deserialize(config)) is row.cls
            else:
                assert losses.get(identifier) is row.function
    shown = {alias for row in ALL.values() for alias in generate.aliases(row)}
    assert shown == set(losses.identifiers.ALIASES)


def test_derivatives_of_pages_exist(generate):
    class Valueless(Loss):
        pass

    assert not generate.has_gradient(Valueless)
    for name, row in ALL.items():
        assert generate.has_gradient(row.cls), name
        # Numbers that no loss takes, so that nothing is compiled: whether there is a Hessian is found out before.
        with pytest.raises(TypeError if generate.has_hessian(row) else NotImplementedError):
            row.cls(**row.variants[0]).value_grad_hess(np.zeros(3, complex), np.zeros(3, complex))


def test_curves_are_of_the_loss_they_stand_for(generate):
    """One target or one label each, two where that says more; computing them is left to the build."""
    drawn = 0
    for name, row in ALL.items():
        curves = generate.curves(row)
        assert bool(curves) == (f"{{figure}} {name}.png" in generate.page(row))
        assert curves or name in BATCH_LOSSES or row.kind == "rowwise"
        for curve in curves:
            drawn += 1
            assert type(curve.loss) is row.cls
            assert curve.loss.reduction == "none"
            assert len(curve.y_true) == len(curve.y_pred) == generate.POINTS
            assert len(np.unique(curve.y_true, axis=0)) == 1
            assert (np.diff(curve.y_pred[:, 0]) > 0).all()
    assert drawn > len(LOSSES)


def test_jumps_are_gaps_and_steep_slopes_are_not(generate):
    x = np.linspace(0.05, 1, generate.POINTS)
    assert not np.isnan(generate._with_gaps(-1 / x**2)).any()
    assert not np.isnan(generate._with_gaps(np.zeros_like(x))).any()
    x = np.linspace(-1, 1, generate.POINTS)
    middle = generate.POINTS // 2
    np.testing.assert_array_equal(np.isnan(generate._with_gaps(np.sign(x))).nonzero()[0], [middle, middle + 1])
    np.testing.assert_array_equal(np.isnan(generate._with_gaps(x + (x > 0))).nonzero()[0], [middle + 1])


def test_everything_public_is_documented(generate):
    pages = ("api.md", "cuda.md", "evaluating.md", "monitoring.md")
    text = "".join((DOCS / page).read_text(encoding="utf-8") for page in pages)
    text += "".join(generate.pages().values())
    modules = ("cuda", "evaluation", "losses", "monitor", "__version__")
    names = [f"fastloss.{name}" for name in fastloss.__all__ if name not in modules] + ["fastloss.evaluation.Worst"]
    names += [f"{module.__name__}.{name}" for module in (fastloss.cuda, losses, monitor) for name in module.__all__]
    missing = [name for name in names if not re.search(rf"auto\w+:: {re.escape(name)}$", text, re.M)]
    assert not missing, f"docs/api.md does not have {missing}"


def test_what_is_included_is_there():
    """The texts that pages take from other files, between markers: Sphinx would take all, or nothing."""
    found = 0
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for path, options in re.findall(r"include(?:\}|::) (\S+)\n((?: *:[\w-]+: .*\n)+)", text):
            found += 1
            source = (DOCS / path).read_text(encoding="utf-8")
            values = {key: value.strip() for key, value in re.findall(r":([\w-]+): (.*)", options)}
            if "pyobject" in values:
                assert f"def {values['pyobject']}(" in source, f"{page.name}: {path} has no {values['pyobject']}"
                continue
            start, end = (
                re.sub(r'^"(.+)"$', r"\1", values[key]) if values[key] != '"""' else '"""'
                for key in ("start-after", "end-before")
            )
            assert end in source.partition(start)[2], f"{page.name}: {path} has no {start!r} with {end!r} behind it"
    assert found == 5
