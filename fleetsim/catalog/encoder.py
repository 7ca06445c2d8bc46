"""Encoders of images (vision towers) that turn what is no text into tokens of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from fleetsim.catalog.architecture import ACTIVATIONS, BYTES_PER_VALUE, Llm
from fleetsim.catalog.data import locate, read_yaml
from fleetsim.catalog.sourced import Record, Sourced


@dataclass(frozen=True, slots=True)
class Encoder:
    """A transformer over the patches of an image, some of which are merged into one token of the prompt.

    The embedding of the patches and the projector behind the last layer count as parameters; their arithmetic (2 % of the layers'
    in Qwen2-VL) is left out of its time.
    """

    name: str
    title: str
    layers: int
    hidden: int
    heads: int
    intermediate: int
    gated: bool
    """Whether the feed-forward part has a gate beside its up projection."""
    patches_per_token: int
    """Patches that become one token of the prompt."""
    window_patches: int
    """Patches that see each other in layers with windows; 0 if there are none."""
    full_layers: int
    """Layers in which all patches of an image see each other."""
    parameters: int
    sourced: Mapping[str, Sourced]
    """Every number with its unit and source."""

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights: vision towers stay in 16 bits where the language model is quantised."""
        return self.parameters * BYTES_PER_VALUE[ACTIVATIONS]

    def patches(self, tokens: int) -> int:
        """Patches behind so many tokens."""
        return tokens * self.patches_per_token

    def pairs(self, images: int, tokens: int) -> int:
        """Pairs of patches that see each other, mean over the layers, where `images` images of equal size yield `tokens` tokens."""
        patches = self.patches(tokens)
        full = patches * patches // max(images, 1)
        if not self.window_patches:
            return full
        windows = min(full, patches * self.window_patches)
        return (full * self.full_layers + windows * (self.layers - self.full_layers)) // self.layers

    @property
    def as_llm(self) -> Llm:
        """The same layers as a language model without vocabulary, which step-time models can price."""
        return Llm(
            name=self.name,
            layers=self.layers,
            full_layers=self.layers,
            mlp_layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.hidden // self.heads,
            intermediate=self.intermediate,
            vocab=1,
            gated=self.gated,
            attention_bias=True,
        )


@cache
def load_encoder(name: str) -> Encoder:
    """Encoder of the catalogue.

    Raises
    ------
    DataError
        If the name is unknown or its file is not valid.
    """
    path = locate("encoder", name)
    record = Record(read_yaml(path), path)
    counts = {
        key: int(record.quantity(key, "count"))
        for key in (
            "layers",
            "hidden",
            "heads",
            "intermediate",
            "patches_per_token",
            "window_patches",
            "full_layers",
            "parameters",
        )
    }
    gated = record.quantity("gated", "count") > 0
    encoder = Encoder(name=name, title=record.text("title"), gated=gated, sourced=record.sourced, **counts)
    record.finish()
    return encoder
