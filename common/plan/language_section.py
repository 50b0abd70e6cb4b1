"""The plan's `pretrain.language`: the language model that is made of the source's texts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from fedgraft.common.plan.section import Problem, Section, check_together

# bytes, and the token that ends a text: each text can be written with these alone
LEAST_TOKENS = 257


class LanguageSection(Section):
    """A small GPT-2 and its tokenizer (Radford et al. 2019): sizes of both."""

    tokens: Annotated[int, Field(ge=LEAST_TOKENS, le=65_536)] = Field(
        default=2048, description="how many the tokenizer has, which is trained on the same texts"
    )
    layers: Annotated[int, Field(ge=1, le=48)] = Field(default=4, description="blocks")
    width: Annotated[int, Field(ge=2, le=4096)] = Field(
        default=128, description="channels of a token's state"
    )
    heads: Annotated[int, Field(ge=1, le=64)] = Field(default=4, description="of attention")

    @model_validator(mode="after")
    def _divides(self) -> LanguageSection:
        if self.width % self.heads == 0:
            return self
        what = f"{self.heads}, and the width is {self.width}"
        return check_together(self, [Problem("heads", what, "write a divisor of the width")])
