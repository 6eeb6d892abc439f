"""What the sections of a config have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Pixels = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a config: frozen, unknown keys refused, no number infinite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
