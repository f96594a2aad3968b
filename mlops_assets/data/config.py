"""How image data are laid out and where data come from: the parts of a `defs.yaml` that the readers obey.

Belongs here: the configuration. Does not belong here: reading (`images`) and fetching (`origin`). A light module on
purpose: the definitions read it, so it imports neither Polars nor Pillow.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from mlops_assets.strict import StrictModel


def _variable(name: str) -> str:
    # No pattern of pydantic's: its refusal would show what was given, which may be the secret itself.
    if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("the name of an environment variable is needed, such as SHOP_DATABASE, and never the value")
    return name


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # which quotes what it does not understand, and that may be a password
        raise ValueError("this is no address; look at its host and its port") from None
    if url and not usable:
        raise ValueError("an address that begins with https:// or http:// is needed")
    if "@" in parts.netloc:
        raise ValueError("user and password do not belong into an address; put them into the variable of `token`")
    return url


Variable = Annotated[str, AfterValidator(_variable)]


class ImagesConfig(StrictModel):
    """How images lie in the repository, and as what they are decoded."""

    layout: Literal["folder", "idx", "cifar"] = Field(
        description="`folder`: one directory per class with image files in it; `idx`: MNIST's files, gzipped or not; "
        "`cifar`: CIFAR's batches, pickled or binary."
    )
    # a list, because Dagster's reader of components does not know tuples
    size: list[int] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="Height and width in pixels that every image is resized to; without, all must agree.",
    )
    mode: Literal["RGB", "L"] = Field(default="RGB", description="Colour (3 channels) or grey (1 channel).")

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.size is not None and not all(1 <= side <= 4096 for side in self.size):
            raise ValueError(f"size must be [height, width], each from 1 to 4096 (got {list(self.size)})")
        if self.layout != "folder" and self.size is not None:
            raise ValueError(f"size is for layout `folder`; {self.layout} images have one size of their own")
        return self


class OriginConfig(StrictModel):
    """Where `mlops data import` takes the data from when no file is given: the first of the three that there is."""

    variable: str = Field(
        default="", pattern=r"^[A-Z][A-Z0-9_]*$|^$", description="Environment variable that may name a local path."
    )
    sample: Literal["", "iris", "digits"] = Field(default="", description="Data that ship inside scikit-learn.")
    url: str = Field(default="", pattern=r"^https?://.+|^$", description="Address of a file to download.")
    sha256: str = Field(default="", pattern=r"^[0-9a-f]{64}$|^$", description="The download's SHA-256; with `url`.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.url) != bool(self.sha256):
            raise ValueError("url and sha256 belong together: a download is checked")
        return self


class SourceConfig(StrictModel):
    """Where new versions of the data come from, again and again: a folder, a query or an address."""

    folder: str = Field(
        default="",
        description="A directory of tables with the same columns (or of images), a file, or a pattern such as "
        "exports/*.csv; a relative path begins in the pipeline's folder.",
    )
    sql: str = Field(default="", description="A query, or @FILE.sql in the pipeline's folder; with `database`.")
    database: Variable = Field(
        default="", description="Name of the environment variable that holds the database's SQLAlchemy URL; with `sql`."
    )
    timeout: float = Field(
        default=600.0, gt=0, le=86400, description="Seconds that the database may take for a statement; with `sql`."
    )
    url: Annotated[str, AfterValidator(_address)] = Field(
        default="", description="Address of a table (CSV, Parquet, JSON lines) or of an archive of tables or images."
    )
    sha256: str = Field(
        default="", pattern=r"^[0-9a-f]{64}$|^$", description="What the download's SHA-256 must be; with `url`."
    )
    token: Variable = Field(
        default="",
        description="Name of the environment variable whose value is sent as `Authorization: Bearer VALUE`, or as it "
        "is where it has a blank, as in `Basic ...`; with `url`.",
    )

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        given = [name for name in ("folder", "sql", "url") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give one of folder, sql and url (got {', '.join(given) or 'none'})")
        for name, door in {"database": "sql", "timeout": "sql", "sha256": "url", "token": "url"}.items():
            if name in self.model_fields_set and not getattr(self, door):
                raise ValueError(f"`{name}` is for `{door}`; leave it out")
        if self.sql and not self.database:
            raise ValueError("`sql` needs `database`, the name of the environment variable with the SQLAlchemy URL")
        return self
