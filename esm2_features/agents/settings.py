"""What agents may use: models, folders, and limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from esm2_features._cache.reports import readable
from esm2_features._checkpoints.catalogue import DEFAULT_MODEL
from esm2_features._checkpoints.checkpoint import open_checkpoint
from esm2_features._inputs.options import positive
from esm2_features.agents.folders import Folders
from esm2_features.exceptions import InputError, printable, shorten
from esm2_features.server.settings import Settings


@dataclass(frozen=True)
class AgentSettings:
    """The models, folders and limits of a server for agents.

    Attributes
    ----------
    service : Settings
        Models, device, precision and cache; the address and the tokens, for HTTP; and the limits
        ``max_items`` (sequences of a call), ``max_residues`` (of a sequence) and ``max_waiting``.
    folders : Folders
        Where files may be read and written; without one, there are no files.
    download : bool
        Whether weights that are not on this machine may be downloaded.

    Raises
    ------
    InputError
        If there are several devices.

    Examples
    --------
    >>> from esm2_features.agents import AgentSettings
    >>> AgentSettings().default_model
    'esm2_t33_650M_UR50D'
    """

    service: Settings = field(default_factory=lambda: Settings(max_items=10_000, max_waiting=16))
    folders: Folders = field(default_factory=Folders)
    download: bool = False

    def __post_init__(self) -> None:
        positive("max_file_bytes", self.folders.max_bytes)
        if len(self.service.devices) != 1:
            raise InputError("Agents use one device: calls are computed one after the other.")

    @property
    def default_model(self) -> str:
        """Name of the model that is used if a call names none (str)."""
        models = self.service.models
        models = self.service.models
        return DEFAULT_MODEL if DEFAULT_MODEL in models else next(iter(models))

    def checkpoint_of(self, model: str | None) -> str:
        """Return what `Engine` takes for a model.

        Parameters
        ----------
        model : str or None
            A name that agents may use; None is the default model.

        Returns
        -------
        checkpoint : str
            Official name or path.

        Raises
        ------
        InputError
            If there is no such model, or its weights would have to be downloaded.

        Examples
        --------
        >>> from esm2_features.agents import AgentSettings
        >>> AgentSettings().checkpoint_of("mini")
        'mini'
        """
        name = self.default_model if model is None else self.service.find(model)
        if name is None:
            raise InputError(
                f"Got model={shorten(printable(model or ''))!r}, which is none of the models here: "
                f"{', '.join(self.service.models)}. Use one of these."
            )
        size = open_checkpoint(self.service.models[name]).to_fetch
        if size is not None and not self.download:
            raise InputError(
                f"The weights of {name} ({readable(size)}) are not on this machine. Use a model "
                "that is (see list_models), or ask the user to start the server with --download."
            )
        return self.service.models[name]
