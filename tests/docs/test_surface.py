"""docs/transformers.md lists what this library rests on in Transformers: page and code say the same."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import transformers
from accelerate.hooks import ModelHook, add_hook_to_module
from packaging.version import Version
from torch import nn
from transformers import AttentionInterface, AutoModel, GenerationMixin, PreTrainedModel, masking_utils
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

import attention_sinks
from attention_sinks import inject_attention_sinks, versions
from attention_sinks.architecture.setup import MARK
from attention_sinks.generation.overrides import OVERRIDES
from attention_sinks.streaming.bound_cache import BoundCache, NothingKept
from attention_sinks.versions import transformers_release
from support.helpers import tiny_llama
from support.paths import ROOT
from support.zoo import animal_of

pytestmark = pytest.mark.newest

NAME = "docs/transformers.md"
PAGE = ROOT / NAME
PACKAGE = Path(attention_sinks.__file__).parent

IMPORTED = "Names we import"
REPLACED, CALLED = "Methods of `generate` and of models/Replaced", "Methods of `generate` and of models/Called"
PATCHED, SET = "Attributes we replace/Patches", "Attributes we replace/Set elsewhere"
OVERRIDDEN = "Methods and attributes our classes override"
ANSWERED = "What the view of a call answers"
READ = "What we read"
SECTIONS = (IMPORTED, REPLACED, CALLED, PATCHED, SET, OVERRIDDEN, ANSWERED, READ)

SINCE = re.compile(r"(?:by )?(4\.x|\d+\.\d+)(?: until (\d+\.\d+))?(?:; .+)?")
NEIGHBOUR = re.compile(r"(?:accelerate|PEFT) \d+\.\d+")
"""In place of a release of Transformers: what belongs to somebody else."""


# ---- the page


@dataclass(frozen=True)
class Row:
    """One name of the page; several that stand in one row of a table are as many of these."""

    section: str
    name: str
    where: str
    since: str
    failure: str

    @property
    def is_here(self):
        """Whether the installed Transformers has the name, as far as the page knows."""
        first, last = SINCE.fullmatch(self.since).groups()
        begun = first == "4.x" or Version(first).release <= transformers_release()
        return begun and (last is None or transformers_release() <= Version(last).release)

    @property
    def files(self):
        """The files of the package that the row names, folders opened."""
        paths = [PACKAGE / part for part in self.where.removesuffix(" and others").split(", ")]
        return [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]


@cache
def _page():
    rows, headings = [], []
    for line in PAGE.read_text().splitlines():
        if line.startswith("#"):
            marks, _, title = line.partition(" ")
            headings = [*headings[: len(marks) - 2], title]
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert len(cells) == 4, f"{NAME}: a row has other than four cells: {line}"
            names = re.findall(r"`([^`]+)`", cells[0])
            cells[1] = cells[1].replace("`", "")
            rows += [Row("/".join(headings), name, *cells[1:]) for name in names]
    return tuple(rows)


def _rows(section):
    return [row for row in _page() if f"{row.section}/".startswith(f"{section}/")]


def _names(section):
    return {row.name for row in _rows(section)}


def _compare(section, touched, listed=None):
    """`touched`: what the code touches, with where it does so if that is known."""
    listed = _names(section) if listed is None else listed
    wrong = [f"{NAME} lists {name}, which the code no longer touches" for name in sorted(listed - set(touched))]
    for name in sorted(set(touched) - listed):
        files = f" ({', '.join(sorted(touched[name]))})" if isinstance(touched, dict) else ""
        wrong.append(f"{NAME} does not list {name}{files}")
    assert not wrong, "\n".join([f"{section}:", *wrong])


def _compare_with_release(rows, has):
    """Where `has`, asked for the name of a row, contradicts what the row says of the installed release."""
    release = f"transformers {transformers.__version__}"
    wrong = [
        f"{NAME} says of {row.name} 'since {row.since}', but {release} {'has it' if has(row.name) else 'lacks it'}"
        for row in rows
        if has(row.name) != row.is_here
    ]
    assert not wrong, "\n".join(wrong)


# ---- the code


@cache
def _trees():
    """Path within the package -> syntax tree."""
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def _nodes(kind):
    return ((file, node) for file, tree in _trees().items() for node in ast.walk(tree) if isinstance(node, kind))


def _imported():
    """What is taken from Transformers, by its dotted path -> the files that do so."""
    found = defaultdict(set)
    for file, node in _nodes((ast.ImportFrom, ast.Import, ast.Attribute)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.level == 0 else []
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name != "transformers"]
        else:
            names = [ast.unparse(node)] if ast.unparse(node.value) == "transformers" else []
        for name in names:
            if name.startswith("transformers."):
                found[name].add(file)
    return dict(found)


@cache
def _classes():
    """The classes of the package, those included that are made for an output when it is met."""
    modules = pkgutil.walk_packages(attention_sinks.__path__, f"{attention_sinks.__name__}.")
    values = [value for module in modules for value in vars(importlib.import_module(module.name)).values()]
    classes = {value for value in values if inspect.isclass(value) and _is_ours(value)}
    return classes | {versions._class_with_both_names(BaseModelOutputWithPast)}


def _is_ours(kind):
    return kind.__module__.split(".")[0] == attention_sinks.__name__


def _written():
    """(module, class) -> names in its body: what Python and decorators add to a class is left out."""
    found = defaultdict(set)
    for file, node in _nodes(ast.ClassDef):
        module = ".".join([attention_sinks.__name__, *Path(file).with_suffix("").parts]).removesuffix(".__init__")
        for part in node.body:
            targets = [*getattr(part, "targets", []), getattr(part, "target", None)]
            found[module, node.name] |= {target.id for target in targets if isinstance(target, ast.Name)}
            found[module, node.name] |= {part.name} if isinstance(part, ast.FunctionDef) else set()
    return found


def _overridden():
    """Names that a class of ours has and a class of Transformers further back in its MRO, or in a subclass's, too."""
    found, written = defaultdict(set), _written()
    for kind in _classes():
        for index, own in enumerate(kind.__mro__):
            names = written[own.__module__, own.__name__] & set(vars(own)) - {"__doc__"} if _is_ours(own) else set()
            for base in kind.__mro__[index + 1 :]:
                if base.__module__.split(".")[0] == "transformers":
                    for name in names & set(vars(base)):
                        found[f"{own.__name__}.{name}"].add(f"{base.__name__} has it")
    return dict(found)


OTHERS = {"model", "outer", "base", "head", "module", "config", "generation_config", "criterion", "tokenizer", "hook"}
OTHERS |= {"peft_model", "peft_config"}
"""What the package calls things that are not its own."""

OWN_MODELS = ("legacy/", "legacy/btlm/")
"""Folders of models and configs of our own."""

MODULE = nn.Module()
"""Has what PyTorch gives to every module."""


def _read():
    """Attributes that are read of models, modules, configs and the like -> the files that do so."""
    found = defaultdict(set)
    for file, node in _nodes((ast.Attribute, ast.Call)):
        if isinstance(node, ast.Attribute):
            thing, name = node.value, node.attr
        elif ast.unparse(node.func) in ("getattr", "hasattr") and isinstance(node.args[1], ast.Constant):
            thing, name = node.args[0], node.args[1].value
        else:
            continue
        if isinstance(thing, ast.Call) and ast.unparse(thing.func) == "type":
            thing = thing.args[0]
        thing = ast.unparse(thing)
        is_others = thing.split(".")[-1] in OTHERS and thing != "self.base" and not file.startswith(OWN_MODELS)
        if is_others and not name.startswith("__") and not hasattr(MODULE, name):
            found[name].add(file)
    return dict(found)


@cache
def _words(file):
    """Names and whole strings in the code of a file, its docstrings left out."""
    tree = _trees()[str(file.relative_to(PACKAGE))]
    found = set()
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            word = getattr(node, field, None)
            found |= set(word.split(".")) if isinstance(word, str) else set()
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.discard(node.value.value)
    return found


# ---- the tests


@pytest.mark.parametrize("section", SECTIONS)
def test_the_rows_are_well_formed(section):
    assert _rows(section), f"{NAME} has no rows under {section!r}"
    for row in _rows(section):
        assert SINCE.fullmatch(row.since) or NEIGHBOUR.fullmatch(row.since), f"{row.name}: since {row.since!r}"
        assert row.failure.endswith("."), f"{row.name}: {row.failure!r} is no sentence"
        for file in row.files:
            assert file.is_file(), f"{NAME} sends {row.name} to {file.relative_to(PACKAGE)}, which does not exist"


def test_every_row_is_under_a_heading_that_is_checked():
    strays = [row.name for row in _page() if not any(f"{row.section}/".startswith(f"{known}/") for known in SECTIONS)]
    assert not strays, f"{NAME} lists {', '.join(strays)} under a heading that no test knows"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_name_is_in_one_of_the_files_the_page_names(section):
    wrong = [
        f"{NAME} lists {row.name}, which {row.where} no longer touches"
        for row in _rows(section)
        if not any(row.name.rpartition(".")[2] in _words(file) for file in row.files if file.is_file())
    ]
    assert not wrong, "\n".join(wrong)


def test_what_is_imported():
    touched = _imported()
    _compare(IMPORTED, touched)
    for row in _rows(IMPORTED):
        missing = touched[row.name] - {str(file.relative_to(PACKAGE)) for file in row.files}
        assert not missing or row.where.endswith(" and others"), f"{NAME} does not send {row.name} to {missing}"
    _compare_with_release(_rows(IMPORTED), _can_be_imported)


def _can_be_imported(name):
    module, _, attribute = name.rpartition(".")
    with suppress(ImportError):
        return hasattr(importlib.import_module(module), attribute) or bool(importlib.import_module(name))
    return False


def test_which_methods_of_generate_are_replaced():
    _compare(REPLACED, set(OVERRIDES))


def test_methods_of_models_are_where_the_page_says():
    owners = (PreTrainedModel, GenerationMixin, AutoModel, AttentionInterface, masking_utils)
    rows = [*_rows(REPLACED), *_rows(CALLED)]
    _compare_with_release(rows, lambda name: any(hasattr(owner, name) for owner in owners))


def test_which_attributes_are_patched():
    """Of models with an attention interface, without one, with blocks of their own, with towers, with states."""
    touched = defaultdict(set)
    for model_type in ("llama", "bloom", "recurrent_gemma", "gemma3", "qwen3_next"):
        for name in _patched(animal_of(model_type).build()):
            touched[name].add(model_type)
    _compare(PATCHED, dict(touched), listed=_names(PATCHED) | set(OVERRIDES))


def test_what_accelerate_has_hooked_is_patched_inside_its_hook():
    model = tiny_llama()
    add_hook_to_module(model.model.layers[0].self_attn, ModelHook())
    assert "_old_forward" in _patched(model) & _names(SET)


def _patched(model):
    inject_attention_sinks(model, attention_sink_size=2, attention_sink_window_size=4)
    (injected,) = [module.__dict__[MARK] for module in model.modules() if MARK in module.__dict__]
    return {patch.name for patch in injected.patches}


def test_what_our_classes_override():
    touched = _overridden()
    written = {f"{kind}.{name}" for (_, kind), names in _written().items() for name in names}
    _compare(OVERRIDDEN, touched, listed=_names(OVERRIDDEN) - (written - set(touched)))
    _compare_with_release(_rows(OVERRIDDEN), touched.__contains__)


def test_what_the_view_of_a_call_answers():
    answers = {f"{kind.__name__}.{name}" for kind in (BoundCache, NothingKept) for name in _public(kind)}
    _compare(ANSWERED, answers)
    _compare_with_release(_rows(ANSWERED), lambda name: hasattr(DynamicCache(), name.partition(".")[2]))


def _public(kind):
    return [name for name in vars(kind) if not name.startswith("_")]


def test_nothing_else_is_read_of_models_modules_configs_and_tokenizers():
    known = {row.name.rpartition(".")[2] for row in _page()}
    _compare("anywhere", {name: files for name, files in _read().items() if name not in known}, listed=set())
