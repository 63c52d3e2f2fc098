"""The models by name: shapes, and sizes and digests of their files.

Two independent public sources state each digest and size. The 15B model has no public digest, and
is identified by its name.
"""

from __future__ import annotations

from dataclasses import dataclass

_HOST = "https://dl.fbaipublicfiles.com/fair-esm"


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of one ESM-2 network.

    Attributes
    ----------
    layers : int
        Number of transformer blocks. There are ``layers + 1`` representations, since
        number 0 is the embedding.
    dim : int
        Width of a representation.
    heads : int
        Attention heads per block.
    """

    layers: int
    dim: int
    heads: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads

    @property
    def parameters(self) -> int:
        """Number of weights: blocks, embedding, language-model head, contact regression (int)."""
        d = self.dim
        block = 12 * d * d + 13 * d
        language_model_head = d * d + 3 * d + 33
        contact_head = self.layers * self.heads + 1
        return self.layers * block + 33 * d + 2 * d + language_model_head + contact_head


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of the official release.

    Attributes
    ----------
    url : str
        Address of the file.
    sha256 : str or None
        Hexadecimal digest, if it is public.
    bytes : int or None
        Size in bytes, if it is public.
    """

    url: str
    sha256: str | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model that can be used by its name.

    Attributes
    ----------
    name : str
        Value for ``model=``.
    parameters : str
        Number of parameters, such as ``"650M"``.
    architecture : Architecture
        Layers, width and heads.
    weights : RemoteFile or None
        The official ``.pt`` file; None for the model that ships with this library.
    regression : RemoteFile or None
        The official contact regression.
    safetensors_sha256 : str or None
        Hexadecimal digest of the same weights on Hugging Face.
    hf_repo : str or None
        Their repository on the Hugging Face hub.
    """

    name: str
    parameters: str
    architecture: Architecture
    weights: RemoteFile | None = None
    regression: RemoteFile | None = None
    safetensors_sha256: str | None = None
    hf_repo: str | None = None

    @property
    def identity(self) -> str:
        """What stands for these weights in the cache, whichever file they were read from."""
        if self.weights is not None and self.weights.sha256 is not None:
            return f"sha256:{self.weights.sha256}"
        return f"name:{self.name}"


def _official(
    name: str,
    parameters: str,
    shape: tuple[int, int, int],
    weights: tuple[str | None, int | None] = (None, None),
    regression: tuple[str | None, int | None] = (None, None),
    safetensors: str | None = None,
) -> ModelCard:
    return ModelCard(
        name=name,
        parameters=parameters,
        architecture=Architecture(*shape),
        weights=RemoteFile(f"{_HOST}/models/{name}.pt", *weights),
        regression=RemoteFile(f"{_HOST}/regression/{name}-contact-regression.pt", *regression),
        safetensors_sha256=safetensors,
        hf_repo=f"facebook/{name}",
    )


DEFAULT_MODEL = "esm2_t33_650M_UR50D"
EMBEDDED_MODEL = "mini"

OFFICIAL: dict[str, ModelCard] = {
    card.name: card
    for card in (
        _official(
            "esm2_t6_8M_UR50D",
            "8M",
            (6, 320, 20),
            ("46f002a9870c9bdecd0ea887acb1f9a38a6b561e8f8bf8a6990b679b9d31b928", 30_099_493),
            ("8f7a4557d57713b97ba0e484303007efb7230d25299c0ac47a0a1b12a87bbb9d", 1_511),
            "24c5fa474c48f3b754b86efe752d5f189d2bcd88190fa2270fc92b2ef3034189",
        ),
        _official(
            "esm2_t12_35M_UR50D",
            "35M",
            (12, 480, 20),
            ("7f21e80e61d16a71735163ef555d3009afb0c98da74c48e29df08606973cc55e", 134_095_705),
            ("16641e05d830d0ce863dd152dbb8c2f3ddfa3c3ec2a66080152c8abad01d8585", 1_959),
            "e35647818e0e064351d4531ed480d225a002567b4b2b93ad3a9246d753150fc0",
        ),
        _official(
            "esm2_t30_150M_UR50D",
            "150M",
            (30, 640, 20),
            ("881c7176cf198ef8dec26a3c375d40eb58d0c33df95c22562ca6cc6d3f812c62", 592_774_773),
            ("6a604b96722ed052eef8a094ad90b275ba2e987d406315dbed0bdc6b3c4238a7", 3_431),
            "c3f1da8aea53bddd32c246c86168c23b9fd72341fb9db9a94436f855f5053566",
        ),
        _official(
            "esm2_t33_650M_UR50D",
            "650M",
            (33, 1280, 20),
            ("ea9d0522b335a8778dea6535a65301f10208dece28cd5865482b0b1fc446168c", 2_604_537_549),
            ("8ffe6edbd4173dc8d45c2cd5cb27d43aad77ec26b4c768200c58ae1f96693575", 3_687),
            "a08adabb949fa67ad3c14b509d04fd60368b35007b0095e3358f81200c4f4db0",
        ),
        _official(
            "esm2_t36_3B_UR50D",
            "3B",
            (36, 2560, 40),
            ("7de8b4082ba15891959ab368b77ce3886697af1efb16d3c9e9e7b0c5d3f07500", 5_678_116_398),
            ("4da500eab246481dc9c8c95bc7b1d02f2803d761c380b0e95186d4a07d0fc84e", 6_759),
        ),
        _official("esm2_t48_15B_UR50D", "15B", (48, 5120, 40)),
    )
}

# Its weights are a file of this package, whose own digest is its identity.
EMBEDDED = ModelCard(EMBEDDED_MODEL, "2.7M", Architecture(6, 192, 6))


_SHORT = {
    short.lower(): card.name
    for card in OFFICIAL.values()
    for short in (card.name, f"esm2-{card.parameters}", card.parameters, f"{card.hf_repo}")
} | {EMBEDDED_MODEL: EMBEDDED_MODEL}


def full_name(text: object) -> str | None:
    """Return the full name of a model by its full or short name, in any case; None if it is none.

    Short names are the size (``"650M"``), the hosted service's name (``"esm2-650m"``) and the
    repository on the Hugging Face hub.
    """
    return _SHORT.get(text.strip().lower()) if isinstance(text, str) else None


def known_names() -> list[str]:
    """List all full and short names in lower case, for suggestions."""
    return list(_SHORT)


def slug(name: str) -> str:
    """Return the hosted service's name of a model."""
    return f"esm2-{OFFICIAL[name].parameters.lower()}" if name in OFFICIAL else name


def available_models() -> list[ModelCard]:
    """List the models that can be used by name.

    Returns
    -------
    models : list of ModelCard
        Smallest first. ``"mini"`` is a demonstration model that ships with this library, and is
        not an ESM-2 model.

    Examples
    --------
    >>> from esm2_features import available_models
    >>> for card in available_models()[:3]:
    ...     print(card.name, card.parameters, card.architecture.layers, card.architecture.dim)
    mini 2.7M 6 192
    esm2_t6_8M_UR50D 8M 6 320
    esm2_t12_35M_UR50D 35M 12 480
    """
    return [EMBEDDED, *OFFICIAL.values()]
