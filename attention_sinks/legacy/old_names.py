"""Configs whose files keep the names of an old release while their attributes have the names of Transformers."""

from __future__ import annotations

from typing import Any, ClassVar

ROPE = ("rope_theta", "partial_rotary_factor")
"""Attributes that Transformers 5 keeps in `config.rope_parameters`."""


class OldNames:
    """Mixed in before a config class, it reads and writes `config.json` with old names.

    Attributes
    ----------
    old_names : dict of str to str
        Name in the file -> name of the attribute.
    required : dict of str to Any
        Name in the file -> the only value that the native class computes. Any other value is refused.
    """

    old_names: ClassVar[dict[str, str]] = {}
    required: ClassVar[dict[str, Any]] = {}
    model_type: ClassVar[str]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a config from the content of its file; ValueError when the native class cannot compute it."""
        values = dict(config_dict)
        for name, value in cls.required.items():
            if values.pop(name, value) != value:
                raise ValueError(
                    f"{name}={config_dict[name]!r} is not supported for model_type={cls.model_type!r}; released models "
                    f"have {value!r}: use one of those, or load this one with the code it came with."
                )
        for old, native in cls.old_names.items():
            if old in values:
                values[native] = values.pop(old)
        return super().from_dict(values, **kwargs)  # type: ignore[misc]  # a class of Transformers comes next

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file as older releases wrote it."""
        values = super().to_dict()  # type: ignore[misc]  # as above
        rope = values.pop("rope_parameters")
        for old, native in self.old_names.items():
            holder = rope if native in ROPE else values
            if native in holder:
                values[old] = holder[native] if holder is rope else holder.pop(native)
        if rope["rope_type"] != "default":  # old releases had no name for it
            values["rope_parameters"] = rope
        return {**values, **self.required}
