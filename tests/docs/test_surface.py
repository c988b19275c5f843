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
from unittest import mock

import pytest
import transformers
from accelerate.hooks import ModelHook, add_hook_to_module
from packaging.version import Version
from torch import nn
from transformers import AttentionInterface, AutoModel, GenerationMixin, PreTrainedModel, masking_utils
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

import attention_sinks
from attention_sinks import inject_attention_sinks, remove_attention_sinks, versions
from attention_sinks.architecture.spec import Architecture
from attention_sinks.architecture.streaming_class import _CLASSES, is_streaming
from attention_sinks.generation.overrides import OVERRIDES
from attention_sinks.models.registry import ARCHITECTURES
from attention_sinks.streaming.bound_cache import BoundCache, NothingKept
from attention_sinks.versions import transformers_release
from support.helpers import tiny_llama
from support.paths import ROOT
from support.zoo import ZOO, animal_of

pytestmark = pytest.mark.each_release

NAME = "docs/transformers.md"
PAGE = ROOT / NAME
PACKAGE = Path(attention_sinks.__file__).parent

IMPORTED = "Names we import"
REPLACED, CALLED = "Methods of `generate` and of models/Replaced", "Methods of `generate` and of models/Called"
ATTRIBUTES = "Attributes we replace"
PATCHED, ADDED, SET = f"{ATTRIBUTES}/Patches", f"{ATTRIBUTES}/Added", f"{ATTRIBUTES}/Set elsewhere"
OVERRIDDEN = "Methods and attributes our classes override"
ANSWERED = "What a bound cache answers"
READ = "What we read"
SECTIONS = (IMPORTED, REPLACED, CALLED, PATCHED, ADDED, SET, OVERRIDDEN, ANSWERED, READ)

SINCE = re.compile(r"(?:by )?(4\.x|\d+\.\d+)(?: until (\d+\.\d+))?(?:; .+)?")
NEIGHBOUR = re.compile(r"(?:accelerate|PEFT) \d+\.\d+")
"""In place of a release of Transformers: what belongs to somebody else."""

OURS = re.compile(r"ours(?:; .+)?")
"""In place of a release: a name that this library adds."""


# ---- the page


@dataclass(frozen=True)
class Name:
    """One name of the page; several that stand in one line of a table are as many of these."""

    section: str
    name: str
    where: str
    since: str
    failure: str
    line: tuple[str, ...]
    """All names of its line."""

    @property
    def is_here(self):
        """Whether the installed Transformers has the name, as far as the page knows."""
        first, last = SINCE.fullmatch(self.since).groups()
        begun = first == "4.x" or Version(first).release <= transformers_release()
        return begun and (last is None or transformers_release() <= Version(last).release)

    @property
    def files(self):
        """The files of the package that its line names, folders opened."""
        return [file for path in self.places for file in _opened(path)]

    @property
    def places(self):
        """The files and folders that its line names."""
        return [PACKAGE / part for part in self.where.removesuffix(" and others").split(", ")]

    @property
    def word(self):
        """What stands in the code: the last part of a dotted name."""
        return self.name.rpartition(".")[2]


def _opened(path):
    return path.rglob("*.py") if path.is_dir() else [path]


@cache
def _page():
    listed, headings = [], []
    for line in PAGE.read_text().splitlines():
        if line.startswith("#"):
            marks, _, title = line.partition(" ")
            headings = [*headings[: len(marks) - 2], title]
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert len(cells) == 4, f"{NAME}: a line has other than four cells: {line}"
            names = tuple(re.findall(r"`([^`]+)`", cells[0]))
            cells[1] = cells[1].replace("`", "")
            listed += [Name("/".join(headings), name, *cells[1:], line=names) for name in names]
    return tuple(listed)


def _listed(section):
    return [name for name in _page() if f"{name.section}/".startswith(f"{section}/")]


def _names(section):
    return {listed.name for listed in _listed(section)}


def _compare(section, touched, listed=None):
    """`touched`: what the code touches, with where it does so if that is known."""
    listed = _names(section) if listed is None else listed
    wrong = [f"{NAME} lists {name}, which the code no longer touches" for name in sorted(listed - set(touched))]
    for name in sorted(set(touched) - listed):
        files = f" ({', '.join(sorted(touched[name]))})" if isinstance(touched, dict) else ""
        wrong.append(f"{NAME} does not list {name}{files}")
    assert not wrong, "\n".join([f"{section}:", *wrong])


def _compare_with_release(names, has):
    """Where `has`, asked for a name, contradicts what the page says of the installed release."""
    release = f"transformers {transformers.__version__}"
    wrong = [
        f"{NAME} says of {name.name} 'since {name.since}', but {release} {'has it' if has(name.name) else 'lacks it'}"
        for name in names
        if has(name.name) != name.is_here
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
OTHERS |= {"peft_model", "peft_config", "plain", "_plain_class"}
"""What the package calls things that are not its own."""

CLASS_OF = {"type", "plain_class"}
"""Functions that give the class of such a thing."""

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
        if isinstance(thing, ast.Call) and ast.unparse(thing.func) in CLASS_OF:
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
def test_the_tables_are_well_formed(section):
    assert _listed(section), f"{NAME} has no names under {section!r}"
    for name in _listed(section):
        kinds = (OURS,) if section == ADDED else (SINCE, NEIGHBOUR)
        assert any(kind.fullmatch(name.since) for kind in kinds), f"{name.name}: since {name.since!r}"
        assert name.failure.endswith("."), f"{name.name}: {name.failure!r} is no sentence"
        for file in name.files:
            assert file.is_file(), f"{NAME} sends {name.name} to {file.relative_to(PACKAGE)}, which does not exist"


def test_every_name_is_under_a_heading_that_is_checked():
    strays = [row.name for row in _page() if not any(f"{row.section}/".startswith(f"{known}/") for known in SECTIONS)]
    assert not strays, f"{NAME} lists {', '.join(strays)} under a heading that no test knows"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_name_is_in_one_of_the_files_the_page_names(section):
    wrong = [
        f"{NAME} lists {name.name}, which {name.where} no longer touches"
        for name in _listed(section)
        if not any(name.word in _words(file) for file in name.files if file.is_file())
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_file_has_one_of_the_names_it_is_listed_for(section):
    wrong = {
        f"{NAME} sends {', '.join(name.line)} to {place.relative_to(PACKAGE)}, which touches none of them"
        for name in _listed(section)
        for place in name.places
        if not any(word.rpartition(".")[2] in _words(file) for word in name.line for file in _opened(place))
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_what_is_imported():
    touched = _imported()
    _compare(IMPORTED, touched)
    for name in _listed(IMPORTED):
        missing = touched[name.name] - {str(file.relative_to(PACKAGE)) for file in name.files}
        assert not missing or name.where.endswith(" and others"), f"{NAME} does not send {name.name} to {missing}"
    _compare_with_release(_listed(IMPORTED), _can_be_imported)


def _can_be_imported(name):
    module, _, attribute = name.rpartition(".")
    with suppress(ImportError):
        return hasattr(importlib.import_module(module), attribute) or bool(importlib.import_module(name))
    return False


def test_which_methods_of_generate_are_replaced():
    _compare(REPLACED, set(OVERRIDES))


def test_methods_of_models_are_where_the_page_says():
    owners = (PreTrainedModel, GenerationMixin, AutoModel, AttentionInterface, masking_utils)
    listed = [*_listed(REPLACED), *_listed(CALLED)]
    _compare_with_release(listed, lambda name: any(hasattr(owner, name) for owner in owners))


# ---- what injection changes in a model, and in its modules, classes and configs

MODEL_TYPES = ("llama", "bloom", "gemma3", "qwen3_next")
"""Attention with an interface, without one, in a wrapper with towers, beside states."""


def _types_with_patches_of_their_own():
    """One for each function that makes such patches, where the installed release has a type that uses it."""
    in_zoo = {animal.model_type for animal in ZOO}
    types = {ARCHITECTURES[name].extra_patches: name for name in sorted(ARCHITECTURES.keys() & in_zoo)}
    del types[Architecture("").extra_patches]
    assert len(types) >= 2, "too few models in the zoo have patches of their own"
    return set(types.values())


def test_what_injection_changes():
    """Every member of a streaming class and every attribute that differs, by whether the plain class has that name."""
    replaced, added = defaultdict(set), defaultdict(set)
    for model_type in {*MODEL_TYPES, *_types_with_patches_of_their_own()}:
        model = animal_of(model_type).build()
        for name, is_known in _changed_by_injection(model):
            (replaced if is_known else added)[name].add(model_type)
    for prepare in (_with_a_forward_on_every_module, _hooked_by_accelerate):
        for name, is_known in _changed_by_injection(prepare(animal_of("llama").build())):
            (replaced if is_known else added)[name].add(prepare.__name__)
    _compare(PATCHED, dict(replaced), listed=_names(PATCHED) | set(OVERRIDES))
    _compare(ADDED, {name: types for name, types in added.items() if name not in OVERRIDES})


def test_what_injection_changes_is_given_back():
    for model_type in MODEL_TYPES:
        model = animal_of(model_type).build()
        before = _state(model)
        remove_attention_sinks(inject_attention_sinks(model, attention_sink_size=2, attention_sink_window_size=4))
        assert not list(_changes(before, _state(model)))


def test_what_accelerate_has_hooked_is_patched_inside_its_hook():
    changed = set(_changed_by_injection(_hooked_by_accelerate(tiny_llama())))
    assert ("_old_forward", True) in changed and "_old_forward" in _names(PATCHED)


def _with_a_forward_on_every_module(model):
    for module in model.modules():
        module.forward = module.forward
    return model


def _hooked_by_accelerate(model):
    for module in model.modules():
        add_hook_to_module(module, ModelHook())
    return model


def _changed_by_injection(model):
    """(name, whether it was there before) of whatever injection puts on `model`."""
    before = _state(model)
    with mock.patch.dict(_CLASSES, clear=True):  # Transformers may have noted something on a class that was used before
        inject_attention_sinks(model, attention_sink_size=2, attention_sink_window_size=4)
    yield from _changes(before, _state(model))
    streaming = {type(module) for module in model.modules() if is_streaming(module)}
    assert streaming, "no module of an injected model has a streaming class"
    for kind in streaming:
        plain = kind._plain_class
        for name in {*vars(kind), *NAMES_OF_A_CLASS} - GIVEN_BY_PYTHON:
            if getattr(kind, name) != getattr(plain, name, MISSING):
                yield name, hasattr(plain, name)


NAMES_OF_A_CLASS = {"__doc__", "__module__", "__name__", "__qualname__"}
"""What a streaming class shows as its plain class does."""

GIVEN_BY_PYTHON = set(vars(type("Subclass", (nn.Module,), {}))) - NAMES_OF_A_CLASS
"""What every subclass has."""


def _state(model):
    """(module or config, name) -> value, of everything that stands on the modules and configs of a model."""
    configs = [vars(module)["config"] for module in model.modules() if "config" in vars(module)]
    return {
        (type(holder).__name__, place, name): value
        for place, holder in enumerate([*model.modules(), *configs])
        for name, value in vars(holder).items()
    }


def _changes(before, after):
    """(name, whether it was there before) of what one of two states has and the other has not, or has otherwise."""
    for key in before.keys() | after.keys():
        if before.get(key, MISSING) is not after.get(key, MISSING):
            yield key[-1], key in before


MISSING = object()


def test_what_our_classes_override():
    touched = _overridden()
    written = {f"{kind}.{name}" for (_, kind), names in _written().items() for name in names}
    _compare(OVERRIDDEN, touched, listed=_names(OVERRIDDEN) - (written - set(touched)))
    _compare_with_release(_listed(OVERRIDDEN), touched.__contains__)


FOR_US = {"plan_of"}
"""What this library alone asks of a bound cache."""


def test_what_a_bound_cache_answers():
    answers = {f"{kind.__name__}.{name}" for kind in (BoundCache, NothingKept) for name in _public(kind) - FOR_US}
    _compare(ANSWERED, answers)
    _compare_with_release(_listed(ANSWERED), lambda name: hasattr(DynamicCache(), name.partition(".")[2]))
    assert not any(hasattr(DynamicCache(), name) for name in FOR_US)


def _public(kind):
    return {name for name in vars(kind) if not name.startswith("_")}


def test_nothing_else_is_read_of_models_modules_configs_and_tokenizers():
    known = {name.word for name in _page()}
    _compare("anywhere", {name: files for name, files in _read().items() if name not in known}, listed=set())
