"""What can be imported, what importing costs, and whether all of it is documented.

The surface is walked, not listed: what `__all__` names, the public methods and properties of these
classes, and the classes that their annotations say they give, over and over.
"""

from __future__ import annotations

import builtins
import doctest
import importlib
import inspect
import pickle
import pkgutil
import re
import subprocess
import sys
import typing
from dataclasses import fields, is_dataclass
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import pandas as pd
import pytest
from numpydoc.docscrape import NumpyDocString, Parameter, get_doc_object
from numpydoc.validate import validate

import esm2_features
from esm2_features import (
    AlignedTransformer,
    Cache,
    DescriptorTransformer,
    Engine,
    ESM2DifferenceTransformer,
    ESM2LikelihoodTransformer,
    ESM2Transformer,
    Mutants,
    Neighbors,
    ResidueTable,
    TransferredLabels,
    exceptions,
)

TAKING_SEQUENCES = {"sequences", "X", "wildtype", "variants"}
"""Parameters that can hold a sequence that is none, which is an `InputError`."""

CHECKS = {
    *("GL01", "GL02", "GL03", "GL05", "GL06", "GL07", "GL08", "GL10"),  # sections: known, in order
    *("SS01", "SS02", "SS03", "SS04", "SS05", "SS06"),  # a summary: one sentence, in the imperative
    *("PR01", "PR02", "PR03", "PR04", "PR05", "PR06", "PR07", "PR08", "PR09", "PR10"),
    *("RT01", "RT03", "RT04", "RT05", "YD01"),  # what is given
    "EX01",
}
"""Checks of numpydoc that every docstring has to pass."""


class Item(NamedTuple):
    """A public object: its path for people, and itself."""

    path: str
    object: Any

    def __str__(self) -> str:
        return self.path


def is_ours(member: object) -> bool:
    return getattr(member, "__module__", "").partition(".")[0] == "esm2_features"


def modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(esm2_features.__path__, "esm2_features.")
    needs_triton = "esm2_features._model.triton_kernels"
    return [importlib.import_module(one.name) for one in found if one.name != needs_triton]


def classes_by_name() -> dict[str, type]:
    return {
        name: member
        for module in modules()
        for name, member in vars(module).items()
        if inspect.isclass(member) and is_ours(member) and name[0] != "_"
    }


def members(of: Item) -> list[Item]:
    """Public methods and properties that are written in this package, also in a base class."""
    names = {name for base in of.object.__mro__ if is_ours(base) for name in vars(base)}
    return [
        Item(f"{of.path}.{name}", member)
        for name in sorted(names)
        if not name.startswith("_")
        and isinstance(
            member := inspect.getattr_static(of.object, name),
            FunctionType | property | classmethod | staticmethod,
        )
    ]


def given(member: object) -> str:
    """The annotation of what a function, a property or a field gives."""
    function = member.fget if isinstance(member, property) else member
    return str(getattr(function, "__annotations__", {}).get("return", ""))


def walk() -> list[Item]:
    found: dict[int, Item] = {}
    known = classes_by_name()
    waiting = [Item(name, getattr(esm2_features, name)) for name in esm2_features.__all__]
    while waiting:
        item = waiting.pop(0)
        if isinstance(item.object, ModuleType):
            waiting += [
                Item(f"{item.path}.{name}", getattr(item.object, name))
                for name in item.object.__all__
            ]
            continue
        # A method that two classes inherit is the same text: it is looked at once.
        if id(item.object) in found:
            continue
        found[id(item.object)] = item
        annotations = given(item.object)
        if inspect.isclass(item.object):
            waiting += members(item)
            if is_record(item.object):
                annotations = " ".join(map(str, item.object.__annotations__.values()))
        names = set(re.findall(r"\w+", annotations)) & known.keys()
        waiting += [Item(name, known[name]) for name in sorted(names)]
    return list(found.values())


def is_record(member: object) -> bool:
    """Whether it is a class of fields, which its attributes describe, and nobody has to make."""
    return inspect.isclass(member) and (is_dataclass(member) or issubclass(member, tuple))


def is_error(member: object) -> bool:
    return inspect.isclass(member) and issubclass(member, Exception)


def is_of_input(member: object) -> bool:
    return is_error(member) and issubclass(typing.cast(type, member), exceptions.InputError)


def field_names(record: type) -> list[str]:
    if is_dataclass(record):
        return [field.name for field in fields(record)]
    return list(typing.cast(Any, record)._fields)


def doc_of(member: object) -> NumpyDocString:
    return get_doc_object(member, config={"show_class_members": False})


def described(parameters: list[Parameter]) -> list[str]:
    """Names of parameters, attributes or errors; several can share an entry."""
    return [name.strip() for p in parameters for name in (p.name or p.type).split(",")]


def text_of(doc: NumpyDocString, *sections: str) -> str:
    """Types and descriptions of sections, as one text."""
    entries = [entry for section in sections for entry in doc[section]]
    return " ".join(" ".join([entry.name, entry.type, *entry.desc]) for entry in entries)


SURFACE = walk()
FUNCTIONS = [item for item in SURFACE if isinstance(item.object, FunctionType)]
PROPERTIES = [item for item in SURFACE if isinstance(item.object, property)]
CLASSES = [item for item in SURFACE if inspect.isclass(item.object)]
RECORDS = [item for item in CLASSES if is_record(item.object)]
ERRORS = [item for item in CLASSES if is_error(item.object)]
MADE_BY_USERS = [item for item in CLASSES if item not in RECORDS and item not in ERRORS]

of_all = pytest.mark.parametrize("item", SURFACE, ids=str)
of_functions = pytest.mark.parametrize("item", FUNCTIONS, ids=str)


# ------------------------------------------------------------------ names and imports


def test__surface__is_what_all_says_sorted():
    assert esm2_features.__all__ == sorted(esm2_features.__all__)
    assert [name for name in dir(esm2_features) if not name.startswith("__")] == (
        esm2_features.__all__
    )
    for name in esm2_features.__all__:
        assert getattr(esm2_features, name) is not None


def test__surface__other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'ESMTransformer'"):
        _ = esm2_features.ESMTransformer


def test__surface__has_a_version():
    assert esm2_features.__version__


@pytest.mark.parametrize(
    "code",
    [
        "import esm2_features",
        "from esm2_features import *",
        "import esm2_features; esm2_features.ESM2Transformer('mini').fit(['MKT'])",
        "import esm2_features; esm2_features.ESM2Transformer('mini')._repr_html_()",
        "import esm2_features; esm2_features.AlignedTransformer().fit_transform(['MKT', 'G-H'])",
        "import esm2_features; esm2_features.DescriptorTransformer('kmers').transform(['MKT'])",
        "from esm2_features import model_selection",
        "import esm2_features.cli",
    ],
)
def test__import__brings_no_torch(code):
    check = f"{code}\nimport sys\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=120)


def test__exceptions__all_names_every_error_and_warning():
    errors = [name for name, member in vars(exceptions).items() if is_error(member)]
    assert exceptions.__all__ == sorted(errors)


@pytest.mark.parametrize("cls", [Engine, Cache])
def test__objects__show_nothing_that_their_documentation_does_not_speak_of(tmp_path, cls):
    instance = Cache(tmp_path) if cls is Cache else Engine("mini", cache=tmp_path)
    doc, name = doc_of(cls), cls.__name__
    attributes = {name for name in vars(instance) if not name.startswith("_")}
    assert attributes >= set(described(doc["Attributes"])) != set()
    assert attributes <= {*described(doc["Parameters"]), *described(doc["Attributes"])}
    public = {name for name in dir(instance) if not name.startswith("_")}
    walked = {item.path for item in SURFACE if item.path.startswith(f"{name}.")}
    assert {f"{name}.{method}" for method in public - attributes} == walked


@pytest.mark.parametrize(
    "estimator",
    [
        ESM2Transformer("mini", cache=None),
        ESM2LikelihoodTransformer("mini", cache=None),
        DescriptorTransformer(),
        AlignedTransformer(),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test__estimators__document_what_fit_leaves(estimator):
    left = vars(estimator.fit(pd.DataFrame({"heavy": ["MKT"]}))).keys() - estimator.get_params()
    assert left == set(described(doc_of(type(estimator))["Attributes"]))


@pytest.mark.parametrize(
    "name", ["residues", "logits", "log_probs", "predict_masked", "contacts", "attentions"]
)
def test__engine__its_errors_say_engine(tmp_path, name):
    with pytest.raises(TypeError, match=rf"^Engine\.{name}\(\) missing 1 required"):
        getattr(Engine("mini", cache=tmp_path), name)()


PUBLIC = [
    *(AlignedTransformer, Cache, DescriptorTransformer, Engine),
    *(ESM2DifferenceTransformer, ESM2LikelihoodTransformer, ESM2Transformer),
]


@pytest.mark.parametrize("cls", [*PUBLIC, Mutants, Neighbors, ResidueTable, TransferredLabels])
def test__public_classes__are_pickled_by_their_public_path(cls):
    assert f"{cls.__module__}.{cls.__qualname__}" == f"esm2_features.{cls.__name__}"
    assert pickle.loads(pickle.dumps(cls)) is cls


def test__a_pickle__of_the_public_path_is_loaded():
    code = [
        b"\x80\x04\x8c\resm2_features\x8c\x0fESM2Transformer\x93)\x81",  # ESM2Transformer.__new__
        b"}\x8c\x05model\x8c\x04minisb.",  # model = "mini"
    ]
    loaded = pickle.loads(b"".join(code))
    assert type(loaded) is ESM2Transformer
    assert loaded.model == "mini"


@pytest.mark.parametrize("cls", [*PUBLIC, ResidueTable])
def test__public_classes__their_examples_run(cls):
    # pytest looks for examples in the module that a class names, and these name the package.
    finder = doctest.DocTestFinder()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    examples = [test for test in finder.find(cls, module=False, globs={}) if test.examples]
    for test in examples:
        runner.run(test)
    assert examples
    assert not runner.failures


# ------------------------------------------------------------------ documentation


def test__documentation__of_all_that_is_public_is_looked_at():
    found = {item.path for item in SURFACE}
    assert found >= {
        *("Engine", "Engine.embed", "Engine.stream", "Engine.contacts", "Engine.feature_names"),
        *("ESM2Transformer", "ESM2DifferenceTransformer.precompute", "ESM2LikelihoodTransformer"),
        *("Cache", "Cache.import_", "CacheInfo", "SpaceInfo", "Conflict", "Spec", "Spec.keys"),
        *("score_variants", "scan_variants", "read_fasta", "FastaRecord"),
        *("available_models", "ModelCard", "ModelCard.identity", "Architecture", "RemoteFile"),
        *("MaskedResidues", "exceptions.InputError", "exceptions.CacheWarning"),
    }
    assert any(path.endswith("Transformer.transform") for path in found)


def wanted_of(item: Item) -> set[str]:
    """Checks of numpydoc that an object has to pass."""
    if inspect.isclass(item.object):
        # A class is a thing, and not done. What is not made by users has no parameters for them.
        made_by_users = not (is_record(item.object) or is_error(item.object))
        return CHECKS - {"SS05"} if made_by_users else CHECKS - {"SS05", "PR01", "EX01"}
    # A property is an attribute: its type is in its summary, or in its annotation.
    return CHECKS - {"SS05", "EX01"} if isinstance(item.object, property) else CHECKS


@of_all
def test__documentation__is_as_numpydoc_has_it(item):
    found = validate(doc_of(item.object))["errors"]
    assert not [f"{code}: {said}" for code, said in found if code in wanted_of(item)]


@pytest.mark.parametrize("item", RECORDS, ids=str)
def test__documentation__of_a_record_describes_its_fields(item):
    attributes = doc_of(item.object)["Attributes"]
    assert described(attributes) == field_names(item.object)
    assert all(entry.type and entry.desc for entry in attributes)


@pytest.mark.parametrize("item", ERRORS, ids=str)
def test__documentation__of_an_error_describes_its_attributes(item):
    # Those without attributes have the initialiser of Python's errors, which has no signature.
    has_own = isinstance(item.object.__init__, FunctionType)
    parameters = inspect.signature(item.object).parameters.values() if has_own else ()
    attributes = doc_of(item.object)["Attributes"]
    assert described(attributes) == [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert all(entry.type and entry.desc for entry in attributes)


@pytest.mark.parametrize("item", [item for item in ERRORS if is_of_input(item.object)], ids=str)
def test__documentation__of_an_error_that_can_be_mended_has_an_example(item):
    assert doc_of(item.object)["Examples"]


@pytest.mark.parametrize("item", [*FUNCTIONS, *MADE_BY_USERS], ids=str)
def test__documentation__names_errors_that_there_are(item):
    for name in described(doc_of(item.object)["Raises"]):
        error = getattr(exceptions, name, None) or getattr(builtins, name, None)
        assert is_error(error), name


@pytest.mark.parametrize("item", [*FUNCTIONS, *MADE_BY_USERS], ids=str)
def test__documentation__names_the_errors_in_the_code(item):
    code = inspect.getsource(item.object.__init__ if inspect.isclass(item.object) else item.object)
    raised = set(re.findall(r"raise (\w+)\(", code.replace(item.object.__doc__, "")))
    documented = described(doc_of(item.object)["Raises"])
    assert {name for name in raised if hasattr(exceptions, name)} <= set(documented)


@of_functions
def test__documentation__of_what_takes_sequences_names_the_error_of_bad_ones(item):
    if not TAKING_SEQUENCES & inspect.signature(item.object).parameters.keys():
        return
    raised = described(doc_of(item.object)["Raises"])
    assert any(is_of_input(getattr(exceptions, name, None)) for name in raised)
    assert "TypeError" in raised


@of_functions
def test__documentation__of_arrays_tells_their_shape_and_dtype(item):
    text = text_of(doc_of(item.object), "Returns", "Yields")
    if "NDArray" in given(item.object) or "ndarray" in text:
        assert re.search(r"ndarray of shape \(.+\)", text)
        assert re.search(r"\b(float32|float64|intp|uint8|bool|object)\b", text)


@of_all
def test__documentation__cites_in_full_what_it_names(item):
    doc = doc_of(item.object)
    references = " ".join(doc["References"])
    elsewhere = inspect.cleandoc(item.object.__doc__).partition("References\n---")[0]
    for author in set(re.findall(r"(\w+)\s+et\s+al\.", elsewhere)):
        assert author in references


@of_all
def test__documentation__refers_to_public_names(item):
    names = {name for other in SURFACE for name in (other.path, other.path.rpartition(".")[2])}
    prose = item.object.__doc__.partition("Examples\n")[0]
    referred = set(re.findall(r"(?<![`:])`([^`]+)`(?!`)", prose))
    assert referred <= names | {"set_output", "ValueError"}
