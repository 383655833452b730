"""Models as they were published: a folder, or a name on the hub, where a revision pins one state of it.

ModelConfig → `org/name@revision`, which goes from process to process as folders do → Published → from_pretrained, vLLM
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from proxymix.errors import UserError

if TYPE_CHECKING:
    from proxymix.config import ModelConfig


class Published(NamedTuple):
    """What transformers and vLLM are told of a model."""

    name: str
    """Folder or hub name."""
    revision: str | None = None
    """Commit, tag or branch; None: the newest."""

    @classmethod
    def of(cls, base: str | Path) -> Published:
        """What `base`, a folder or `reference`, stands for.

        >>> Published.of("org/name@v1"), Published.of("org/name")
        (Published(name='org/name', revision='v1'), Published(name='org/name', revision=None))
        """
        name, mark, revision = str(base).partition("@")
        return cls(name, revision) if mark and not Path(base).exists() else cls(str(base))

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `from_pretrained`."""
        pinned = {} if self.revision is None else {"revision": self.revision}
        return {"pretrained_model_name_or_path": self.name, **pinned}

    def file(self, name: str) -> Path | None:
        """Where one of its files is on this machine, which has loaded it before; None: it has none of that name."""
        if Path(self.name).exists():
            path = Path(self.name, name)
            return path if path.exists() else None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name, name, revision=self.revision)
        return Path(found) if isinstance(found, str) else None

    @property
    def folder(self) -> str:
        """Where its files are on this machine, which has loaded it before."""
        if Path(self.name).exists():
            return self.name
        from huggingface_hub import snapshot_download

        return str(snapshot_download(self.name, revision=self.revision, local_files_only=True))


def reference(model: ModelConfig) -> str:
    """Where an existing model is: its path, or its hub name and revision as one text."""
    return f"{model.hub}@{model.revision}" if model.revision else str(model.path or model.hub)


def published_config(base: str | Path, **settings: Any) -> Any:
    """The configuration of transformers that the model has.

    Raises:
        UserError: it cannot be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(**Published.of(base).arguments, **settings)
    except (OSError, ValueError) as error:
        raise unreadable("configuration of the model", base, error) from error


def unreadable(what: str, base: str | Path, error: Exception, rule: str = "") -> UserError:
    """What a person is told where transformers cannot load `what`, which may have a rule of ours to keep to."""
    remedy = "check hub, revision and the network, or export HF_TOKEN" if not Path(base).exists() else "check path"
    remedy += f"; {rule}" if rule else ""
    return UserError(f"model: transformers cannot load the {what} {str(base)!r} ({' '.join(str(error).split())[:300]}); {remedy}")
