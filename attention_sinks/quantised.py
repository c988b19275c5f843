"""Packages that Transformers needs to load quantised weights."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

PACKAGES: dict[str, dict[str, str]] = {
    "aqlm": {"aqlm": "aqlm[gpu,cpu]"},
    "auto-round": {"auto_round": "auto-round"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "gptq": {"gptqmodel": "gptqmodel", "optimum": "optimum"},
    "spqr": {"spqr_quant": "spqr_quant[gpu]"},
    "torchao": {"torchao": "torchao"},
    "vptq": {"vptq": "vptq"},
}
"""`quant_method` of a config -> for each module that it needs, what pip calls it.

Transformers asks for one after the other, and speaks of a missing GPU where GPTQ lacks a package."""


def check_packages(checkpoint: Any, *settings: Any) -> None:
    """Check that the packages for quantised weights are installed.

    Parameters
    ----------
    checkpoint : str or os.PathLike
        What is loaded, for the message.
    *settings : dict, QuantizationConfigMixin or None
        The `quantization_config` of the checkpoint's config and that of the user.

    Raises
    ------
    ImportError
        When a package is missing. The message has the command that installs it.
    """
    for setting in settings:
        method = _method_of(setting)
        modules = PACKAGES.get(method, {})
        missing = [package for module, package in modules.items() if find_spec(module) is None]
        if missing:
            raise ImportError(
                f"{str(checkpoint)!r} has quant_method={method!r}: its quantised weights need "
                f"{' and '.join(modules.values())}. Not installed: {', '.join(missing)}. Call "
                f"`pip install {' '.join(map(repr, missing))}`, or use a checkpoint whose weights are not quantised."
            )


def _method_of(setting: Any) -> str:
    """Return the name of the method: what a config holds is a dict or an object, with a string or an enumeration."""
    known = setting if isinstance(setting, Mapping) else getattr(setting, "__dict__", {})
    method = known.get("quant_method")
    return str(getattr(method, "value", method))
