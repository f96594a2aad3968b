"""How far a training is, as a file from which it goes on after a kill.

Belongs here: the file, whole or not at all, and what makes it trusted. Does not belong here: what a training keeps in
it (`trainer`).

The format is safetensors with JSON in its header; nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_FACTS: Final = "facts"
_IDENTITY: Final = "identity"
_DIGEST: Final = "digest"


@dataclass(frozen=True)
class Checkpoint:
    """One training's file.

    Attributes:
        path: Where it lies; the caller removes it when what came of the training is safe.
        identity: Names all that the weights depend on: a file of another identity is not read.
    """

    path: Path
    identity: str

    def write(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the file; where that fails, warn, and leave the one before."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        text = json.dumps(facts)
        kept = _apart(tensors)
        header = {_IDENTITY: self.identity, _FACTS: text, _DIGEST: _digest(kept, text)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(kept, self._aside, header)
            with self._aside.open("rb") as file:
                os.fsync(file.fileno())
            self._aside.replace(self.path)
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be written, and the training goes on without it: %s", self.path, _reason(error))
            self.discard_unfinished()

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read tensors onto the CPU, and facts; None, with a warning unless there is no file, where it is no use."""
        from safetensors import SafetensorError, safe_open

        try:
            with self.path.open("rb"):  # safetensors tells a missing file and a damaged one in one way
                pass
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get(_IDENTITY) != self.identity:
                    self._ignore("it is of another recipe or environment")
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            self._ignore(_reason(error))
            return None
        if header.get(_DIGEST) != _digest(tensors, header.get(_FACTS, "")):
            self._ignore("its content is damaged")
            return None
        return tensors, json.loads(header[_FACTS])

    def discard_unfinished(self) -> None:
        """Remove what a writer that was killed, or that failed, left beside the file."""
        try:
            self._aside.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", self._aside, _reason(error))

    @property
    def _aside(self) -> Path:
        return self.path.with_name(f".{self.path.name}.tmp")

    def _ignore(self, reason: str) -> None:
        log.warning("%s is ignored, and the training starts from the beginning: %s", self.path, reason)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors into the form that safetensors takes: on the CPU, and no two in one piece of memory."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in tensors.items():
        whole = value.detach().cpu().contiguous()
        apart[name] = whole.clone() if whole.untyped_storage().data_ptr() in taken else whole
        taken.add(apart[name].untyped_storage().data_ptr())
    return apart


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    """Hash the content, since the format itself holds no checksum; XXH3 takes a sixth of the time of SHA-256."""
    import torch
    from xxhash import xxh3_128

    state = xxh3_128(facts.encode())
    for name in sorted(tensors):
        value = tensors[name]
        state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
