"""How spread the evidence is: the share of the class activation map above half of its maximum.

Source: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016; figure 1 of the paper on
DropBlock shows that networks trained with it look at more of the object.
"""

from __future__ import annotations

from typing import Any

from .trained import Trained


def measure(trained: Trained) -> dict[str, Any]:
    return {"share": trained.spreads.double().mean().item()}
